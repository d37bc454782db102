"""What a network expects of its images. Imports shapes only."""

from dataclasses import dataclass

from tinyseed.shapes import Interpolation


@dataclass(frozen=True)
class InputContract:
    """The images of a network: channels in [0, 1], then (image − mean) ÷ std by channel.

    Attributes:
        mean, std: a number for each channel; three are red, green and blue.
        pixel_range: the stored values that become 0 and 1; none: what the files' type can hold.
        size: side in pixels that it was made for.
        interpolation: how its images are resized.
        multiple: sides that it takes are multiples of this (a ViT's patch).
        fixed: it takes images of `size` alone.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    size: int = 224
    interpolation: Interpolation = "bilinear"
    multiple: int = 1
    fixed: bool = False
    pixel_range: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        """How many channels its images have."""
        return len(self.mean)

    def fitting(self, size: int) -> int:
        """The side nearest to `size`, and not below it, that the network takes.

        >>> InputContract(multiple=14).fitting(160)
        168
        """
        return self.size if self.fixed else -(-size // self.multiple) * self.multiple
