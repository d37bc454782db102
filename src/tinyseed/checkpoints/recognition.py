"""What a checkpoint file is: whose, which network, where its backbone and head are, and what an encoder does not use.

The formats of `formats/catalog.py` are asked one after the other; what none recognizes has to have exactly the tensors
of a library's architecture. Tensors that are neither used nor of a known group are refused, never passed over.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tinyseed.checkpoints.entries import Entries, levels, one_network, sort_entries, under
from tinyseed.checkpoints.fit import describe_misfits, misfits, shortened, without
from tinyseed.checkpoints.formats.base import Candidate, Format
from tinyseed.checkpoints.formats.catalog import FORMATS, STATE_DICT
from tinyseed.checkpoints.signatures import Architecture, choose, matching, nearest
from tinyseed.checkpoints.weights import StateDict
from tinyseed.errors import InputError, argument
from tinyseed.models.encoder import Layer
from tinyseed.models.libraries import create_on_meta
from tinyseed.models.names import find_model, is_model_name
from tinyseed.models.spec import ModelSpec

_POSITION = re.compile(r"(\d{1,3})\.(weight|bias|running_mean|running_var|num_batches_tracked)")
_NETWORK = 20
"""Number of tensors from which on a part of a file is looked at as a network."""


@dataclass(frozen=True)
class Parts:
    """A checkpoint taken apart.

    Attributes:
        format: whose checkpoint it is.
        architecture: the network to build, and the classifiers that the file has and an encoder does not.
        backbone: the backbone's tensors by its own names; a plain state dict's classifier is among them.
        head: the head's tensors, named as in a `Projector`; empty where there is none.
        layers: of the head.
        unused: number of tensors that an encoder does not use, by group.
        epochs: as the file says.
    """

    format: Format
    architecture: Architecture
    backbone: StateDict
    head: StateDict
    layers: tuple[Layer, ...]
    unused: Mapping[str, int]
    epochs: int | None


def take_apart(content: object, path: Path, spec: ModelSpec) -> Parts:
    """Find out what a file is, and take backbone and head out of it.

    Args:
        content: what the file holds.
        path: the file, for errors.
        spec: which of its networks is meant (`prefix`), its architecture (`arch`), and whether layers in place of its
            classifier are its head (`output`), where the file does not say so.

    Raises:
        InputError: there is no network in it, or several; it is of no known architecture, or of several; or it has
            tensors that its format does not know.
    """
    entries = sort_entries(content, path)
    if spec.prefix is not None:
        whole = _recognized(_candidates(entries, path, spec.prefix))
        twin = None if whole is None else _twin(*whole, spec.prefix)
        if whole is not None and twin is not None:
            return _of_format(twin, whole[1], entries, path, spec)
        entries = under(entries, spec.prefix, path)
    candidates = _candidates(entries, path)
    found = _recognized(candidates, named=spec.arch is not None)
    return (
        _of_library(candidates, entries, path, spec)
        if found is None
        else _of_format(*found, entries, path, spec)
    )


def _recognized(candidates: list[Candidate], *, named: bool = False) -> tuple[Format, Candidate] | None:
    """The first format that recognizes a candidate, and this with the names that the format's record is about.

    Where the architecture is given by its name (`named`), formats that cannot be loaded are not asked.
    """
    for each in FORMATS:
        if each.unsupported and named:
            continue
        for candidate in candidates:
            if each.recognizes(candidate):
                state = candidate.state if each.convert is None else each.convert(candidate.state)
                return each, replace(candidate, state=state)
    return None


def _twin(form: Format, candidate: Candidate, prefix: str) -> Format | None:
    """A file's format with another of its networks as the backbone, such as a momentum encoder.

    Args:
        form: of the whole file.
        candidate: its tensors.
        prefix: of the network that is meant.

    Returns:
        None where that network has not the same tensors as the format's own.
    """
    chosen = prefix.rstrip(".") + "."
    own, other = (
        {name.removeprefix(beginning) for name in candidate.state if name.startswith(beginning)}
        for beginning in (form.backbone, chosen)
    )
    if chosen == form.backbone:
        return form
    if not form.backbone or own != other:
        return None
    head = chosen + form.head.removeprefix(form.backbone) if form.head else ""
    unused = tuple(each for each in form.unused if not each.startswith(chosen))
    return replace(form, backbone=chosen, head=head, unused=(*unused, form.backbone))


def _candidates(entries: Entries, path: Path, prefix: str | None = None) -> list[Candidate]:
    """What formats are asked about: the fewest prefixes removed come first.

    Raises:
        InputError: there are several networks, no format knows them, and no prefix will choose.
    """
    beside = frozenset(entries.unused)
    if len(entries.networks) > 1:
        whole = Candidate(entries.flat(), beside=beside)
        if prefix is not None or any(each.recognizes(whole) for each in FORMATS):
            return [whole]
    key, state = one_network(entries, path)
    parallel = entries.parallel.get(key, 0)
    return [Candidate(part, key, parallel, prefix, beside) for prefix, part in levels(state, path)]


def _of_format(form: Format, candidate: Candidate, entries: Entries, path: Path, spec: ModelSpec) -> Parts:
    if form.unsupported:
        raise InputError(path, f"{form.unsupported}; nothing was loaded")
    unused, backbone, head, unknown = Counter(entries.unused), StateDict(), StateDict(), []
    for name, value in candidate.state.items():
        group = max((each for each in form.unused if name.startswith(each)), key=len, default=None)
        if group is not None:
            unused[group.rstrip("._")] += 1
        elif form.head and name.startswith(form.head):
            head[name.removeprefix(form.head)] = value
        elif name.startswith(form.backbone):
            backbone[name.removeprefix(form.backbone)] = value
        else:
            unknown.append(name)
    if unknown:
        why = f"holds tensors that no {form.name} checkpoint has, nothing was loaded: {shortened(unknown)}"
        remedy = f"choose the network by its name: give `prefix` {form.backbone.rstrip('.') or 'NAME'}"
        raise InputError(path, f"{why}; {remedy}")
    architecture = _architecture(form, backbone, path) if spec.arch is None else _given(spec.arch)
    head = _numbered(head)
    layers = _layers(head, form, path)
    return Parts(form, architecture, backbone, head, layers, unused, entries.epochs)


def _architecture(form: Format, backbone: StateDict, path: Path) -> Architecture:
    """The network that a format's tensors are of, as its record decides between several."""
    own = Candidate(backbone)
    if not own.architectures:
        raise InputError(path, _fits_nothing([own]))
    if form.asks and not any(each.name.startswith(form.prefer) for each in own.architectures):
        names = " or ".join(each.name for each in own.architectures)
        raise InputError(path, f"{form.asks}; nothing was loaded: give `arch` {names}, whichever it is")
    found = choose(own.architectures, backbone, path, form.prefer, same_input=form.input is not None)
    tagged = f"{found.name}.{form.tag}"
    return found._replace(name=tagged) if form.tag and is_model_name(tagged) else found


def _of_library(candidates: list[Candidate], entries: Entries, path: Path, spec: ModelSpec) -> Parts:
    """A file that no format recognizes: the tensors of an architecture and nothing else."""
    if spec.arch is not None:
        architecture = _given(spec.arch)
        candidate = _fitting_best(candidates, architecture)
    else:
        candidate = next((each for each in candidates if each.architectures), None)
        if candidate is None:
            raise InputError(path, _fits_nothing(candidates))
        architecture = choose(candidate.architectures, candidate.state, path, STATE_DICT.prefer)
    backbone, head = dict(candidate.state), _in_place_of_classifier(candidate.state, architecture)
    if head and spec.output == "auto":
        place = architecture.classifiers[0]
        why = f"has several layers in place of a classifier ({shortened(list(head))} under {place!r})"
        raise InputError(path, f"{why}: its head, or to be left out? Give `output` head or backbone")
    if spec.output in ("backbone", "trunk"):
        head = {}
    if head:
        backbone = without(backbone, architecture.classifiers)
    layers = _layers(head, STATE_DICT, path)
    return Parts(STATE_DICT, architecture, backbone, head, layers, entries.unused, entries.epochs)


def _in_place_of_classifier(state: StateDict, architecture: Architecture) -> StateDict:
    """Tensors of several layers where the library's network has its classifier, one layer; else none."""
    found = StateDict()
    for place in architecture.classifiers:
        inside = {
            n.removeprefix(f"{place}."): value for n, value in state.items() if n.startswith(f"{place}.")
        }
        # One layer may have a position of its own, as in Sequential(Dropout, Linear).
        if len({name.rpartition(".")[0] for name in inside}) > 1:
            found |= inside
    return found


def _given(arch: str) -> Architecture:
    with argument("arch"):
        return Architecture(arch, create_on_meta(*find_model(arch)).classifiers)


def _fitting_best(candidates: list[Candidate], architecture: Architecture) -> Candidate:
    if len(candidates) == 1:
        return candidates[0]
    wanted = create_on_meta(*find_model(architecture.name)).network.state_dict()

    def count(candidate: Candidate) -> int:
        return sum(map(len, misfits(wanted, without(candidate.state, architecture.classifiers)).values()))

    return min(candidates, key=count)


def _fits_nothing(candidates: list[Candidate]) -> str:
    """What to say of tensors that no architecture has.

    Either a part of them is a network, or some network comes nearest, and what keeps them from fitting is listed.
    """
    last = candidates[-1]
    at = f" under {last.prefix.rstrip('.')!r}" if last.prefix else ""
    for part in dict.fromkeys(name.partition(".")[0] for name in last.state):
        inner = {
            n.removeprefix(f"{part}."): value for n, value in last.state.items() if n.startswith(f"{part}.")
        }
        if len(inner) >= _NETWORK and (found := matching(inner)):
            prefix = f"{last.prefix}{part}"
            return (
                f"holds more than one network, nothing was loaded; under {prefix!r} are the tensors of "
                f"{' or '.join(each.name for each in found[:3])}: give `prefix` {prefix}"
            )
    where = "where the file does not say what it is, give `arch` NAME"
    found = nearest(last.state)
    if found is None:
        return f"fits no architecture{at}, nothing was loaded; {where}"
    name, problems = found
    return (
        f"fits no architecture{at}, nothing was loaded; nearest is {name}: {describe_misfits(problems)}; "
        f"{where}, for instance `arch` {name}"
    )


def _numbered(head: StateDict) -> StateDict:
    """A head that is one linear layer is the first of a sequence."""
    if head.keys() <= {"weight", "bias"}:
        return {f"0.{name}": value for name, value in head.items()}
    return head


def _layers(head: StateDict, form: Format, path: Path) -> tuple[Layer, ...]:
    """The layers of a head: those with tensors as these show them, activations where positions have none."""
    parts: dict[int, dict[str, tuple[int, ...]]] = {}
    strange = [f"{form.head}{name}" for name in head if _POSITION.fullmatch(name) is None]
    if strange:
        why = f"its head has tensors of no known layer, nothing was loaded: {shortened(strange)}"
        raise InputError(path, why)
    for name, value in head.items():
        found = _POSITION.fullmatch(name)
        assert found is not None
        parts.setdefault(int(found[1]), {})[found[2]] = tuple(value.shape)
    layers = tuple(_layer(parts.get(position), form) for position in range(max(parts, default=-1) + 1))
    kinds = " ".join(re.sub(r":\d+", "", str(layer)) for layer in layers)
    if layers and not re.fullmatch(form.layers, kinds):
        why = f"its head ({form.head}*) is not that of {form.name}, nothing was loaded: {kinds}"
        raise InputError(path, f"{why}; some of its tensors are missing or too many: download the file again")
    return layers


def _layer(parts: Mapping[str, tuple[int, ...]] | None, form: Format) -> Layer:
    """One layer by its tensors' names and shapes."""
    if parts is None:
        return Layer(form.activation)
    if parts.keys() & {"running_mean", "running_var", "num_batches_tracked"}:
        return Layer("bn", plain=not parts.keys() & {"weight", "bias"})
    return Layer("linear", (parts.get("weight") or parts.get("bias") or (1,))[0], "bias" not in parts)
