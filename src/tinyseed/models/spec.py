"""Which model is meant, and how it is to be loaded."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tinyseed.errors import InputError
from tinyseed.models.contract import InputContract
from tinyseed.shapes import Interpolation

RANDOM = "random:"
"""What a library's name begins with where random weights are meant."""

Output = Literal["auto", "head", "backbone", "trunk"]
"""What an encoder gives: the head's embedding, the backbone's features ("trunk" means the same), or, for "auto", the
embedding where there is a head and the features where there is none."""


@dataclass(frozen=True)
class ModelSpec:
    """A model to load.

    Attributes:
        name: a run folder, an exported file, a checkpoint of a known format (docs/teachers.md), the URL of such a file,
            transformers:FOLDER_OR_ID, or a name: timm's, torchvision/NAME, swav/NAME, seed/NAME, or
            tinyseed/clothing-resnet18, the bundled teacher. `random:NAME` stands for random weights.
        weights: for a library's name: a file with its state dict, "random", or None for the library's pre-trained
            weights (cached or downloaded).
        arch: name of the network in a checkpoint whose tensors fit several, or none that is known.
        prefix: which part of a checkpoint, by what its tensors' names begin with: the key of one of several networks
            (`model_ema`), or a module (`encoder_k`, `teacher.backbone`).
        output: what the encoder gives.
        small_stem: for a library's name: whether its weights are for the small stem.
        image_size: side of the images in pixels; by default what the model was made for.
        round_size: raise `image_size` to the next size that the network takes.
        seed: of random weights.
        mean, std, interpolation: of the images that the model expects; by default what is known of it.
    """

    name: str | Path
    weights: str | Path | None = None
    arch: str | None = None
    prefix: str | None = None
    output: Output = "auto"
    small_stem: bool = False
    image_size: int | None = None
    round_size: bool = False
    seed: int | None = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: Interpolation | Literal["auto"] = "auto"

    def side(self, contract: InputContract) -> int:
        """Side in pixels of the images that a network with this contract will see."""
        if self.image_size is None:
            return contract.size
        return contract.fitting(self.image_size) if self.round_size else self.image_size

    def expected(self, contract: InputContract) -> InputContract:
        """A model's contract with the mean, std and interpolation that were given.

        Raises:
            InputError: the numbers are not one for each channel.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != contract.channels:
                given = " ".join(f"{value:g}" for value in values)
                why = f"the model sees {contract.channels} channels; give {contract.channels} numbers, one for each"
                raise InputError(given, why, argument=name)
        return replace(
            contract,
            mean=self.mean or contract.mean,
            std=self.std or contract.std,
            interpolation=contract.interpolation if self.interpolation == "auto" else self.interpolation,
        )
