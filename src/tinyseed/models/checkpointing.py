"""Activation checkpointing: a block's inner activations are computed again in the backward pass, not kept.

Outputs, gradients and batch norms' statistics are those of training without it, to the last bit.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(network: nn.Module) -> int:
    """Let each block of a network keep only its inputs for the backward pass; returns how many blocks there are.

    So do max-pooling layers outside of blocks: their positions, 64-bit numbers, would take more than a block does.
    State dict, parameters and the outputs in evaluation mode stay as they are.
    """
    found = list(blocks(network))
    inside = {part for block in found for part in block.modules()}
    pools = [part for part in network.modules() if isinstance(part, nn.MaxPool2d) and part not in inside]
    for block in (*found, *pools) if found else ():
        block.forward = partial(_forward, block, block.forward)
    return len(found)


def blocks(network: nn.Module, *, inside: bool = False) -> Iterator[nn.Module]:
    """The modules that a network repeats: those with parts of their own in its sequences and lists.

    Args:
        network: such as a ResNet, a MobileNet or a vision transformer.
        inside: whether it is itself a sequence or list.
    """
    for child in network.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from blocks(child, inside=True)
        elif inside and next(child.children(), None) is not None:
            yield child
        else:
            yield from blocks(child)


def _forward(block: nn.Module, plain: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    if not (block.training and torch.is_grad_enabled()):
        return plain(*args, **kwargs)
    return checkpoint(plain, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _kept_statistics(block)


@contextmanager
def _kept_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms count the batch in copies of their running statistics, since it has been counted once."""
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        copies = {name: None if value is None else value.clone() for name, value in norm._buffers.items()}
        norm._buffers.update(copies)
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
