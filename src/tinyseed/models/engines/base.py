"""What an engine is: one way to compute a frozen backbone, and the record by which everything else knows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tinyseed.models.backbones import Backbone
from tinyseed.shapes import Features, Images


@runtime_checkable
class Engine(Protocol):
    """A frozen backbone: normalized images, as many as there are, to features of any scale, without gradient.

    Attributes:
        key: what distinguishes its features from those of torch, for caches; "" for torch itself.
    """

    key: str

    def __call__(self, images: Images) -> Features:
        """Features [n, f]."""
        ...


@dataclass(frozen=True)
class EngineSpec:
    """Everything that the rest of tinyseed knows about an engine.

    Attributes:
        name: as in `teacher_engine`.
        about: one line for people.
        build: makes the engine of a frozen backbone on the CPU from some normalized images that it will see the like
            of. May fail in any way: exporters and compilers do.
        can_run: None, or what is missing on this machine, as the end of a sentence "needs …".
        images: how many images `build` wants.
        cosine: least mean cosine between its embeddings and the torch network's.
        agreement: least fraction of nearest neighbors that its embeddings share with the torch network's.
    """

    name: str
    about: str
    build: Callable[[Backbone, Images], Engine]
    can_run: Callable[[], str | None]
    images: int = 8
    cosine: float = 0.999
    agreement: float = 0.95


def in_pieces(compute: Callable[[Tensor], Tensor], images: Tensor, piece: int) -> Tensor:
    """Outputs for all images, computed for `piece` of them at a time.

    The maps of a few images stay in the processor's cache, and less memory is needed at a time.
    """
    if len(images) <= piece:
        return compute(images)
    return torch.cat([compute(part) for part in images.split(piece)])
