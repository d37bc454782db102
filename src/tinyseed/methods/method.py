"""What a training step is. Imports the encoder, views and shapes; each method has a file of its own beside this one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tinyseed.data.augmentation import View
from tinyseed.data.render import normalize, resized
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.shapes import Embeddings, Images, Scalar

Forward = Callable[..., Any]
"""The trained module as the engine wrapped it (mixed precision, DDP); for most methods normalised images in, unit rows
out."""


@runtime_checkable
class Group(Protocol):
    """The processes that train together."""

    rank: int
    size: int

    def gather(self, tensor: Tensor) -> Tensor:
        """Join each process' tensor along the first axis, in order of rank; the same on every process."""
        ...

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The same, and the gradients of all processes flow back, summed, to whose tensor it was."""
        ...


class Alone:
    """A group of one process."""

    rank = 0
    size = 1

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor


def prepared(view: Images, contract: InputContract) -> Float[Tensor, "n c {contract.size} {contract.size}"]:
    """A view in [0, 1] as a network expects it: at its resolution, normalised."""
    return normalize(resized(view, contract.size, contract.interpolation), contract.mean, contract.std)


@dataclass(frozen=True)
class StepOutput:
    """What one micro-batch gives.

    Attributes:
        loss: mean over this process' images; differentiable.
        rows: unit rows to enqueue once the optimizer has stepped; none for methods without a queue.
        target_entropy: mean entropy of the teacher's target in nats, for methods that have one.
    """

    loss: Scalar
    rows: Embeddings | None = None
    target_entropy: Scalar | None = None


@runtime_checkable
class Method(Protocol):
    """One way to train an encoder."""

    @property
    def module(self) -> nn.Module:
        """What is trained: the only thing that the optimizer and DDP see."""
        ...

    @property
    def encoder(self) -> Encoder:
        """The part of it that is measured and saved."""
        ...

    def views(self, image_size: int) -> tuple[View, ...]:
        """The random views of each image that a step takes, for networks that see `image_size` pixels."""
        ...

    def step(self, forward: Forward, views: tuple[Images, ...], step: int) -> StepOutput:
        """Views in [0, 1] to a loss. Changes nothing that a later step reads."""
        ...

    def adjust_gradients(self, step: int) -> None:
        """Change or drop gradients between the backward pass and the optimizer's step."""
        ...

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Change the method's state (queue, momentum encoder); called once, after the optimizer's step."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the method's own state; the module is moved by the engine."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The method's own state, without the module's."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        ...
