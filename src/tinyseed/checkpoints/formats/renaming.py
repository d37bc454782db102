"""Tensors under other names: what formats use to give the authors' tensors the names of a library's network."""

import re
from collections.abc import Sequence

import torch

from tinyseed.checkpoints.weights import StateDict

LISTED_RESNET = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{stage + 3}\.", f"layer{stage}.") for stage in range(1, 5)),
)
"""A torchvision ResNet whose children were put into an `nn.Sequential`, without the last."""


def renamed(state: StateDict, rules: Sequence[tuple[str, str]], prefix: str = "") -> StateDict:
    """Apply regular expressions, one after the other, to the names that begin with a prefix, from there on.

    >>> list(renamed({"net.4.0.bn1.bias": torch.ones(1), "4.weight": torch.ones(1)}, LISTED_RESNET, "net."))
    ['net.layer1.0.bn1.bias', '4.weight']
    """
    found = StateDict()
    for name, value in state.items():
        new = name
        if name.startswith(prefix):
            new = name.removeprefix(prefix)
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
            new = prefix + new
        # A name that is taken stays as it was, and is then refused.
        found[name if new in found else new] = value
    return found


def joined(state: StateDict, parts: Sequence[str], whole: str) -> StateDict:
    """Concatenate tensors that a library has as one, wherever all of them are there.

    Args:
        state: tensors by name.
        parts: what the parts are called, in the order in which they are joined (`q_proj`, `k_proj`, `v_proj`).
        whole: what they are together (`qkv`).

    >>> list(joined({"a.q.bias": torch.ones(1), "a.k.bias": torch.ones(1)}, ("q", "k"), "qk"))
    ['a.qk.bias']
    """
    found = StateDict()
    for name, value in state.items():
        *names, together = _family(name, parts, whole)
        shapes = {state[each].shape[1:] if each in state else None for each in names}
        if not names or None in shapes or len(shapes) > 1:
            found[name] = value
        elif together not in found:
            found[together] = torch.cat([state[each] for each in names])
    return found


def _family(name: str, parts: Sequence[str], whole: str) -> list[str]:
    """The names of all parts and of the whole, where a name is a part's; else the name."""
    segments = name.split(".")
    place = next((segments.index(part) for part in parts if part in segments), None)
    if place is None:
        return [name]
    return [".".join([*segments[:place], each, *segments[place + 1 :]]) for each in (*parts, whole)]
