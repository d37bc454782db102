"""Whether the numbers of a state are all finite."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tinyseed.lazy import lazy

if TYPE_CHECKING:
    import torch
else:
    (torch,) = lazy("torch")


def first_non_finite(state: object) -> str | None:
    """The name of the first number or tensor of nested state dicts that holds a NaN or an infinity; None: none does.

    All tensors of a device and type are looked at together, so that a GPU is waited for once.

    Args:
        state: mappings, lists and tuples of tensors and plain values; what is not a float does not count.

    Returns:
        Its keys, joined by dots.
    """
    tensors: dict[tuple[torch.device, torch.dtype], list[tuple[str, torch.Tensor]]] = {}
    for name, value in _leaves(state, ""):
        if isinstance(value, float):
            if not math.isfinite(value):
                return name
        elif value.is_floating_point() and value.numel():
            tensors.setdefault((value.device, value.dtype), []).append((name, value.detach()))
    for named in tensors.values():
        # The largest absolute value, not a sum, which could overflow; NaN is larger than all.
        largest = torch.stack(torch._foreach_norm([value for _, value in named], math.inf))  # pyright: ignore[reportPrivateImportUsage]
        broken = largest.isfinite().logical_not().nonzero()
        if len(broken):
            return named[int(broken[0])][0]
    return None


def _leaves(state: object, name: str) -> Iterator[tuple[str, Any]]:
    entries: Any = ()
    if isinstance(state, Mapping):
        entries = state.items()
    elif isinstance(state, list | tuple):
        entries = enumerate(state)
    elif isinstance(state, float | torch.Tensor):
        yield name, state
    for key, value in entries:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
