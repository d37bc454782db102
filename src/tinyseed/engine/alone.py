"""A single process on the CPU: what Lightning Fabric would do there, without its import of more than a second."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Alone:
    """Does what a run asks of `Fabric`, with the same numbers to the last bit, on the CPU of one process.

    Attributes:
        autocast_dtype: of mixed precision; None: float32.
    """

    autocast_dtype: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def setup(self, module: nn.Module, optimizer: Optimizer) -> tuple[Callable[..., Any], Optimizer]:
        """The module's forward pass in this precision, and the optimizer as it is."""
        return Forwarding(module, self), optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context manager."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast("cpu", dtype=self.autocast_dtype)

    def backward(self, tensor: Tensor) -> None:
        """Gradients of this number; bfloat16 and float32 need no scale."""
        tensor.backward()

    @contextmanager
    def no_backward_sync(self, module: object) -> Generator[None, None, None]:
        """There is nobody to exchange gradients with."""
        del module
        yield

    def state_dict(self) -> dict[str, Any]:
        """Nothing: only float16 has a loss scale."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
        del state


@dataclass(frozen=True)
class Forwarding:
    """A module's forward pass under autocast: floating-point inputs in its dtype, floating-point outputs in float32."""

    module: nn.Module
    alone: Alone

    def __call__(self, *given: Any) -> Any:  # noqa: ANN401  (tensors, or tuples and lists of tensors)
        """The module's outputs."""
        dtype = self.alone.autocast_dtype
        if dtype is None:
            return self.module(*given)
        with self.alone.autocast():
            output = self.module(*_converted(given, dtype))
        return _converted(output, torch.get_default_dtype())


def _converted(value: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The same with each floating-point tensor in this dtype."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_converted(part, dtype) for part in value)
    return value
