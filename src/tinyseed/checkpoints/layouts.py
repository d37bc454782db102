"""Layouts of public checkpoint files: wrapper, backbone, head, and what an encoder does not use.

A layout is recognized by the names of its tensors. Tensors that it does not know are refused, never passed over.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tinyseed.checkpoints.fit import shortened
from tinyseed.checkpoints.weights import StateDict, unwrap
from tinyseed.errors import InputError

_TRAINING = re.compile(r"optim|(grad_|loss_|fp16_|amp_)?scaler|amp$|(lr_)?sched|dino_loss")
"""Beginnings of the names of entries that belong to training and hold no weights of a network."""


@dataclass(frozen=True)
class Layout:
    """Names of one kind of checkpoint.

    Attributes:
        method: whose checkpoints they are.
        sign: the beginning of some tensor's name, by which such files are recognized.
        backbone: what names of the backbone begin with.
        head: what names of the head begin with; "" where none is used.
        unused: what names of tensors begin with that an encoder does not use.
    """

    method: str
    sign: re.Pattern[str]
    backbone: str = ""
    head: str = ""
    unused: tuple[str, ...] = ()


LAYOUTS = (
    # Source: facebookresearch/moco, moco/builder.py. The momentum encoder and its queue are only for training.
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
        method: whose checkpoint it is.
        backbone: the backbone's tensors by its own names; in a plain state dict its classifier's, too.
        head: the head's tensors, named as in a `Projector`; empty where there is none.
        unused: number of tensors that an encoder does not use, by group.
        wrapper: the key that the state dict was stored under; "" where it was the file itself.
        parallel: names began with `module.`.
        epochs: as the file says.
    """

    method: str
    backbone: StateDict
    head: StateDict
    unused: Mapping[str, int]
    wrapper: str
    parallel: bool
    epochs: int | None


def take_apart(content: object, path: Path) -> Parts:
    """Find backbone and head in what a file holds.

    Raises:
        InputError: there is no state dict in it, or tensors that its layout does not know.
    """
    state, wrapper, parallel = unwrap(content, path)
    unused = _training_tensors(content, wrapper, path)
    layout = next((each for each in LAYOUTS if any(map(each.sign.match, state))), PLAIN)
    backbone, head, unknown = StateDict(), StateDict(), []
    for name, value in state.items():
        group = next((prefix for prefix in layout.unused if name.startswith(prefix)), None)
        if group is not None:
            unused[group.rstrip(".")] += 1
        elif layout.head and name.startswith(layout.head):
            head[name.removeprefix(layout.head)] = value
        elif name.startswith(layout.backbone):
            backbone[name.removeprefix(layout.backbone)] = value
        else:
            unknown.append(name)
    if unknown:
        why = (
            f"holds tensors that no {layout.method} checkpoint has, nothing was loaded: {shortened(unknown)}"
        )
        raise InputError(path, why)
    if head.keys() <= {"weight", "bias"}:  # one linear layer
        head = {f"0.{name}": value for name, value in head.items()}
    method = _moco_version(head) if layout.method == "MoCo" else layout.method
    return Parts(method, backbone, head, dict(unused), wrapper, parallel, _epochs(content))


def _moco_version(head: StateDict) -> str:
    return "MoCo v1" if head.keys() == {"0.weight", "0.bias"} else "MoCo v2"


def _training_tensors(content: object, wrapper: str, path: Path) -> Counter[str]:
    """How many tensors the entries beside a state dict hold, by name; only those of training may hold any."""
    unused: Counter[str] = Counter()
    for key, value in content.items() if wrapper and isinstance(content, Mapping) else ():
        count = 0 if key == wrapper else _count_tensors(value)
        if not count:
            continue
        if not (_TRAINING.match(str(key)) or (wrapper, key) == ("teacher", "student")):
            why = f"holds tensors under {key!r} beside {wrapper!r}; save the state dict that is meant"
            raise InputError(path, why)
        unused["optimizer" if str(key).startswith("optim") else str(key)] += count
    return unused


def _count_tensors(value: object) -> int:
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, Mapping):
        return sum(map(_count_tensors, value.values()))
    return sum(map(_count_tensors, value)) if isinstance(value, list | tuple) else 0


def _epochs(content: object) -> int | None:
    epochs = content.get("epoch") if isinstance(content, Mapping) else None
    return epochs if isinstance(epochs, int) and not isinstance(epochs, bool) else None
