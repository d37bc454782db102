"""Torchvision's networks for images of other channels than three. Imports nothing of tinyseed."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def first_convolution_takes(channels: int) -> Iterator[None]:
    """Torchvision has no setting for the channels: change its first convolution of three while it is built.

    So the library's own initialisation is drawn for it, whose scale may depend on the channels.
    """
    initialise = nn.Conv2d.__init__
    signature = inspect.signature(initialise)
    changed = False

    def with_channels(*given: Any, **named: Any) -> None:  # noqa: ANN401
        nonlocal changed
        bound = signature.bind(*given, **named)
        if not changed and bound.arguments["in_channels"] == 3:
            bound.arguments["in_channels"] = channels
            changed = True
        initialise(*bound.args, **bound.kwargs)

    nn.Conv2d.__init__ = with_channels
    try:
        yield
    finally:
        nn.Conv2d.__init__ = initialise
