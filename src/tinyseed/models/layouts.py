"""What stands where in public checkpoint files: wrapper, network, head, and what is of no use. Imports weights, errors.

A layout is told by the names of its tensors. A tensor that it does not name is refused, never passed over.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tinyseed.errors import InputError
from tinyseed.models.weights import StateDict, few

_WRAPPERS = ("state_dict", "model", "teacher")
"""Keys that a state dict stands under; DINO's full checkpoints have `teacher`."""
_TRAINING = re.compile(r"optim|(grad_|loss_|fp16_|amp_)?scaler|amp$|(lr_)?sched|dino_loss")
"""How the names of entries beside it begin that belong to training: no weights of a network."""
_PARALLEL = "module."


@dataclass(frozen=True)
class Layout:
    """Names of one kind of checkpoint.

    Attributes:
        method: who makes such files.
        sign: some tensor's name begins like this.
        trunk: what names of the network begin with.
        head: what names of the head begin with; "" where none is used.
        unused: what names of tensors begin with that are of no use to an encoder.
    """

    method: str
    sign: re.Pattern[str]
    trunk: str = ""
    head: str = ""
    unused: tuple[str, ...] = ()


LAYOUTS = (
    # Source: facebookresearch/moco, moco/builder.py. The momentum encoder and its queue are for training alone.
    Layout(
        "MoCo",
        re.compile(r"encoder_q\."),
        "encoder_q.",
        "encoder_q.fc.",
        ("encoder_k.", "queue_ptr", "queue"),
    ),
    # Source: jacobswan1/SEED, seed/builder.py. The teacher in the file is the one that the student learned from.
    Layout("SEED", re.compile(r"student\."), "student.", "student.fc.", ("teacher.", "queue_ptr", "queue")),
    # Source: facebookresearch/swav, src/resnet50.py. Prototypes are the clusters of its loss.
    Layout("SwAV", re.compile(r"projection_head\."), "", "projection_head.", ("prototypes.",)),
    # Source: facebookresearch/dino, utils.py (MultiCropWrapper). The head leads to the 65,536 prototypes of its loss.
    Layout("DINO", re.compile(r"backbone\."), "backbone.", "", ("head.",)),
    # Source: the SimCLR teacher of SEED's authors: a batch norm between the head's layers.
    Layout("SimCLR", re.compile(r"fc\.[13]\."), "", "fc."),
    Layout("MoCo v2 (its query encoder alone)", re.compile(r"fc\.[02]\."), "", "fc."),
)
PLAIN = Layout("state dict", re.compile(""))
"""A network and nothing else."""


@dataclass(frozen=True)
class Parts:
    """A checkpoint taken apart.

    Attributes:
        trunk: the network's tensors by its own names; of a plain state dict its classifier's, too.
        head: the head's tensors, named as in a `Projector`; empty where there is none.
        unused: how many tensors of each group are of no use to an encoder.
        wrapper: the key that the state dict stood under; "" where it was the file itself.
        parallel: names began with `module.`.
        epochs: as the file tells it.
    """

    method: str
    trunk: StateDict
    head: StateDict = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    wrapper: str = ""
    parallel: bool = False
    epochs: int | None = None

    @property
    def bare(self) -> bool:
        """The file was a network's state dict and nothing around it."""
        return self.method == PLAIN.method and not self.wrapper and not self.parallel


def take_apart(content: object, path: Path, flag: str) -> Parts:
    """Find network and head in what a file holds.

    Raises:
        InputError: there is no state dict in it, or tensors that its layout does not know.
    """
    wrapper, named, unused = _open(content, path, flag)
    state, parallel = _without_parallel(named, path, flag)
    layout = next((each for each in LAYOUTS if any(map(each.sign.match, state))), PLAIN)
    trunk, head, strange = StateDict(), StateDict(), []
    for name, value in state.items():
        group = next((prefix for prefix in layout.unused if name.startswith(prefix)), None)
        if group is not None:
            unused[group.rstrip(".")] += 1
        elif layout.head and name.startswith(layout.head):
            head[name.removeprefix(layout.head)] = value
        elif name.startswith(layout.trunk):
            trunk[name.removeprefix(layout.trunk)] = value
        else:
            strange.append(name)
    if strange:
        told = f"holds tensors that no {layout.method} checkpoint has, nothing was loaded: {few(strange)}"
        raise InputError(flag, path, told)
    if head.keys() <= {"weight", "bias"}:  # one linear layer
        head = {f"0.{name}": value for name, value in head.items()}
    method = _moco_version(head) if layout.method == "MoCo" else layout.method
    return Parts(method, trunk, head, dict(unused), wrapper, parallel, _epochs(content))


def _moco_version(head: StateDict) -> str:
    return {frozenset({"0.weight", "0.bias"}): "MoCo v1"}.get(frozenset(head), "MoCo v2")


def _open(content: object, path: Path, flag: str) -> tuple[str, StateDict, Counter[str]]:
    """The state dict in a file, the key that it stood under, and how many tensors training's entries have."""
    if not isinstance(content, Mapping) or not content:
        raise InputError(flag, path, f"holds a {type(content).__name__} where a state dict is needed")
    wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), "")
    state = content[wrapper] if wrapper else content
    unused: Counter[str] = Counter()
    for key, value in content.items() if wrapper else ():
        count = 0 if key == wrapper else _count_tensors(value)
        if not count:
            continue
        if not (_TRAINING.match(str(key)) or (wrapper, key) == ("teacher", "student")):
            raise InputError(
                flag,
                path,
                f"holds tensors under {key!r} beside {wrapper!r}; save the state dict that is meant",
            )
        unused["optimizer" if str(key).startswith("optim") else str(key)] += count
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(flag, path, f"is no state dict: {name!r} is a {type(value).__name__}, no tensor")
    if not state:
        raise InputError(flag, path, "holds an empty state dict")
    return wrapper, {str(name): value for name, value in state.items()}, unused


def _count_tensors(value: object) -> int:
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, Mapping):
        return sum(map(_count_tensors, value.values()))
    return sum(map(_count_tensors, value)) if isinstance(value, list | tuple) else 0


def _without_parallel(state: StateDict, path: Path, flag: str) -> tuple[StateDict, bool]:
    """Names without the `module.` that each wrapping for parallel training puts before them."""
    parallel = False
    # Most of them: a name that lacks it stays as it is, and is then refused by its name.
    while 2 * sum(name.startswith(_PARALLEL) for name in state) > len(state):
        parallel = True
        plain = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
        if len(plain) != len(state):
            raise InputError(flag, path, "holds the same tensors twice, with and without 'module.'")
        state = plain
    return state, parallel


def _epochs(content: object) -> int | None:
    epochs = content.get("epoch") if isinstance(content, Mapping) else None
    return epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None
