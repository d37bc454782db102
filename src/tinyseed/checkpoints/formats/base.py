"""The record of a checkpoint format, and what it is asked about."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from tinyseed.checkpoints.signatures import Architecture, matching
from tinyseed.checkpoints.weights import StateDict
from tinyseed.models.contract import IMAGENET, InputContract

IMAGENET_BICUBIC = replace(IMAGENET, interpolation="bicubic")
"""ImageNet's mean and std; images are resized bicubically."""
UNIT = replace(IMAGENET, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Images in [0, 1] as they are, resized bilinearly."""
UNIT_BICUBIC = replace(UNIT, interpolation="bicubic")
"""The same, resized bicubically."""

MLP = r"(linear (bn )?relu )*linear"
"""Linear layers with bias, and activations between them, after batch norms or not."""
MLP_GELU = MLP.replace("relu", "gelu")
"""The same with GELU."""


@dataclass(frozen=True)
class Candidate:
    """Tensors that may be of a format, and where in the file they were.

    Attributes:
        state: tensors by name, without the prefixes below. Where a file has several networks and no rule chooses one,
            names begin with the key that each is stored under (`teacher.backbone.conv1.weight`).
        entry: the key that the tensors were stored under, dotted where nested; "" where it was the file itself.
        parallel: how often names began with the `module.` or `_orig_mod.` of a wrapping, which is removed.
        prefix: what all names began with otherwise (`model.`, `backbone.`); a candidate without it comes first.
        beside: names of what the file holds beside its networks.
    """

    state: StateDict
    entry: str = ""
    parallel: int = 0
    prefix: str = ""
    beside: frozenset[str] = frozenset()

    @property
    def bare(self) -> bool:
        """Whether the file is the state dict itself, and its names have no prefix."""
        return not (self.entry or self.parallel or self.prefix)

    @functools.cached_property
    def architectures(self) -> list[Architecture]:
        """The architectures that have exactly these tensors; several where names and shapes do not decide."""
        return matching(self.state)

    def has(self, pattern: str) -> bool:
        """Whether some tensor's name begins with a match of a regular expression."""
        expression = re.compile(pattern)
        return any(map(expression.match, self.state))


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of checkpoint.

    Attributes:
        name: whose checkpoints they are, as `tinyseed teachers` shows it.
        source: where the code that writes such files is, down to the file.
        sign: regular expressions; the beginning of some tensor's name matches, for each of them.
        where: what else has to hold, where names alone do not decide; it may look at values.
        convert: renames (or splits) the authors' tensors before they are taken apart.
        backbone: what names of the backbone begin with.
        head: what names of the head's layers begin with, followed by their positions in an `nn.Sequential` or, for one
            linear layer, by `weight` and `bias`; "" where no head is used.
        activation: between the head's layers.
        layers: a regular expression for the head's layers, without their widths (`linear-plain bn relu linear`, where
            "-plain" is without bias, or without scale and shift): one that has lost tensors is not taken for another.
        unused: what names of tensors begin with that an encoder does not use; they are counted by this group.
        prefer: beginnings of architectures' names, which decide between those of the same tensors. With an empty one
            the first is taken.
        tag: timm's tag of the published weights, whose input and settings the network has (`dino`).
        input: mean, std and interpolation that the network was trained with; None: those of its library.
        note: what users should know, as one sentence.
        asks: what tensors do not say; where no architecture of `prefer` has them, `arch` has to be given, even if
            only one fits. "" where the tensors decide.
        unsupported: why such files are refused, and what to do; "" where they are loaded.
    """

    name: str
    source: str
    sign: tuple[str, ...] = ()
    where: Callable[[Candidate], bool] | None = None
    convert: Callable[[StateDict], StateDict] | None = None
    backbone: str = ""
    head: str = ""
    activation: Literal["relu", "gelu"] = "relu"
    layers: str = MLP
    unused: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    tag: str = ""
    input: InputContract | None = IMAGENET
    note: str = ""
    asks: str = ""
    unsupported: str = ""

    def recognizes(self, candidate: Candidate) -> bool:
        """Whether tensors are of this format, damaged ones included: what does not fit is reported later."""
        return all(map(candidate.has, self.sign)) and (self.where is None or self.where(candidate))


def expects(contract: InputContract, own: InputContract) -> InputContract:
    """A network's own contract with a format's mean, std and interpolation."""
    return replace(own, mean=contract.mean, std=contract.std, interpolation=contract.interpolation)
