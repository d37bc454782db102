"""Which of a file's tensors are a network's: its entries, and the prefixes that all names share."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tinyseed.checkpoints.weights import Placeholder, StateDict, read_content
from tinyseed.errors import InputError

_TRAINING = re.compile(
    r"optim|(lr_)?sched|lr$|(\w+_)?scaler|amp|callbacks$|loops$|hyper_?param|rng|random|cuda_rng|meter|metric|history"
    r"|criterion|\w*loss(es)?$|args$|opts?$|config|cfg|best_|epoch|step|iter"
)
"""Beginnings of the names of entries that belong to training and hold no network."""
_PARALLEL = ("module.", "_orig_mod.")
"""Prefixes of torch's wrappers: DistributedDataParallel and AveragedModel, torch.compile."""
_DEEPEST = 12
"""Number of mappings in one another that are looked into."""


@dataclass(frozen=True)
class Entries:
    """A file's tensors, sorted.

    Attributes:
        networks: state dicts by the key that each was stored under, dotted where nested; "" is the file itself. Names
            are without the prefixes of torch's wrappers.
        parallel: how many such prefixes were removed, by key.
        unused: number of tensors that belong to no network, by group.
        epochs: as the file says.
    """

    networks: Mapping[str, StateDict]
    parallel: Mapping[str, int]
    unused: Counter[str]
    epochs: int | None

    def flat(self) -> StateDict:
        """The tensors of all networks, by key and name."""
        return {
            f"{key}.{name}" if key else name: value
            for key, state in self.networks.items()
            for name, value in state.items()
        }


def sort_entries(content: object, path: Path) -> Entries:
    """Sort what a file holds into networks and what belongs to training.

    Raises:
        InputError: there is no network, or its tensors cannot be one's.
    """
    if not isinstance(content, Mapping):
        raise InputError(path, _no_network(content))
    unused: Counter[str] = Counter()
    found: dict[str, StateDict] = {}
    _sort(content, "", found, unused, set())
    if not found:
        raise InputError(path, _no_network(content))
    networks, parallel = {}, {}
    for key, state in found.items():
        networks[key], parallel[key] = without_parallel(state, path)
    epochs = content.get("epoch")
    epochs = epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None
    return Entries(networks, parallel, unused, epochs)


def _sort(
    node: Mapping[object, object], key: str, found: dict[str, StateDict], unused: Counter[str], seen: set[int]
) -> None:
    """Sort one mapping of a file, and those in it; a pickle may hold itself, or the same twice."""
    nested = len(found)
    seen.add(id(node))
    tensors = {str(name): value for name, value in node.items() if isinstance(value, Tensor)}
    for name, value in node.items():
        if isinstance(value, Tensor):
            continue
        group = str(name) if not key else f"{key}.{name}"
        if id(value) in seen:
            continue
        if isinstance(value, Mapping) and group.count(".") < _DEEPEST and not _TRAINING.match(str(name)):
            _sort(value, group, found, unused, seen)
        elif count := _count_tensors(value):
            unused["optimizer" if str(name).startswith("optim") else group] += count
    # Numbers such as `best_acc1`, `n_averaged` or CLIP's `logit_scale` are no network's. Nor is a tensor beside one.
    beside = len(found) > nested
    state = {name: value for name, value in tensors.items() if not beside and (value.ndim or "." in name)}
    if not any(value.ndim for value in state.values()):
        state = {}
    for name in tensors.keys() - state.keys():
        unused[f"{key}.{name}" if key else name] += 1
    if state:
        found[key] = state


def _count_tensors(value: object, depth: int = 0) -> int:
    if isinstance(value, Tensor):
        return 1
    if depth == _DEEPEST or not isinstance(value, Mapping | list | tuple):
        return 0
    inside = value.values() if isinstance(value, Mapping) else value
    return sum(_count_tensors(each, depth + 1) for each in inside)


def _no_network(content: object) -> str:
    """What to say of a file without a network's tensors."""
    code = _foreign(content)
    if code is not None:
        return (
            f"holds more than tensors ({code}), which only running its code could load; "
            "save only the state dict: torch.save(model.state_dict(), OUT)"
        )
    if isinstance(content, Mapping) and content:
        keys = ", ".join(map(repr, list(content)[:4]))
        return f"holds no tensors of a network (only {keys}); save its state dict: torch.save(model.state_dict(), OUT)"
    return f"holds a {type(content).__name__} where a state dict is needed"


def _foreign(content: object) -> str | None:
    """The class of an object that may be a whole network; None where there is none."""
    if isinstance(content, Placeholder) and content.of.partition(".")[0] not in sys.stdlib_module_names:
        return content.of
    values = content.values() if isinstance(content, Mapping) else ()
    return next((value.of for value in values if isinstance(value, Placeholder) and _foreign(value)), None)


def without_parallel(state: StateDict, path: Path) -> tuple[StateDict, int]:
    """Names without the prefixes that torch's wrappers put before them, and how many those were."""
    # Most of them: a name that lacks it stays as it is, and is then refused by its name.
    count = 0
    while prefix := next((each for each in _PARALLEL if _most_begin(state, each)), None):
        plain = {name.removeprefix(prefix): value for name, value in state.items()}
        if len(plain) != len(state):
            raise InputError(path, f"holds the same tensors twice, with and without {prefix!r}")
        state, count = plain, count + 1
    return state, count


def _most_begin(state: StateDict, prefix: str) -> bool:
    return 2 * sum(name.startswith(prefix) for name in state) > len(state)


def levels(state: StateDict, path: Path) -> Iterator[tuple[str, StateDict]]:
    """The tensors, then again without the first part that all names share, as long as there is one.

    >>> import torch
    >>> [prefix for prefix, _ in levels({"model.net.a.weight": torch.ones(1), "model.net.b": torch.ones(1)}, Path())]
    ['', 'model.', 'model.net.']
    """
    removed = ""
    while True:
        yield removed, state
        first = next(iter(state)).partition(".")[0] + "."
        if not all(name.startswith(first) and len(name) > len(first) for name in state):
            return
        state, _ = without_parallel({name.removeprefix(first): value for name, value in state.items()}, path)
        removed += first


def read_weights(path: Path, prefix: str | None = None) -> StateDict:
    """The tensors of a network in a file by name, on the CPU, without the prefixes of torch's wrappers.

    Args:
        path: of the file.
        prefix: which network, see `under`; by default the only one.

    Raises:
        InputError: the file is missing or broken, holds no network, or several.
    """
    entries = sort_entries(read_content(path), path)
    return one_network(entries if prefix is None else under(entries, prefix, path), path)[1]


def one_network(entries: Entries, path: Path) -> tuple[str, StateDict]:
    """The network of a file with its key: the only one, or a teacher beside its student.

    Raises:
        InputError: there are several, and none is meant by the rule.
    """
    keys = list(entries.networks)
    if len(keys) == 1:
        return keys[0], entries.networks[keys[0]]
    if set(keys) == {"student", "teacher"}:
        return "teacher", entries.networks["teacher"]
    listed = ", ".join(repr(key) for key in keys[:6])
    why = f"holds several networks ({listed}{', …' if len(keys) > 6 else ''}), nothing was loaded"
    raise InputError(path, f"{why}; choose one by its name: give `prefix` {keys[0]}")


def under(entries: Entries, prefix: str, path: Path) -> Entries:
    """Only the tensors whose names begin with a prefix, without it; the others are unused.

    Args:
        entries: of a file.
        prefix: as in the file (`teacher.backbone`), or without the key of the only network and what all names share.
        path: the file, for errors.

    Raises:
        InputError: no name begins so.
    """
    beginning = prefix.rstrip(".") + "."
    unused = Counter(entries.unused)
    for state, parallel in _views(entries, path):
        found = {n.removeprefix(beginning): value for n, value in state.items() if n.startswith(beginning)}
        if not found:
            continue
        total = sum(map(len, entries.networks.values()))
        unused[f"all but {prefix.rstrip('.')}"] += total - len(found)
        return replace(entries, networks={prefix: found}, parallel={prefix: parallel}, unused=unused)
    parts = {name.partition(".")[0] for state, _ in _views(entries, path) for name in state}
    remedy = f"{path} has no tensors of this prefix; it has {', '.join(sorted(parts)[:8])}"
    raise InputError(prefix, remedy, argument="prefix")


def _views(entries: Entries, path: Path) -> list[tuple[StateDict, int]]:
    """Ways to name a file's tensors that a prefix may refer to."""
    flat = [(entries.flat(), 0)]
    try:
        key, state = one_network(entries, path)
    except InputError:
        return flat
    return flat + [(part, entries.parallel.get(key, 0)) for _, part in levels(state, path)]
