"""What a network expects of its images."""

from dataclasses import dataclass

from tinyseed.shapes import Interpolation


@dataclass(frozen=True)
class InputContract:
    """The images of a network: channels in [0, 1], then (image − mean) ÷ std by channel.

    Attributes:
        mean, std: a number for each channel; three are red, green and blue.
        pixel_range: the stored values that become 0 and 1; by default what the files' type can hold.
        size: side in pixels that the network was made for.
        interpolation: how images are resized.
        multiple: the network takes sides that are multiples of this (a ViT's patch).
        fixed: the network takes images of `size` only.
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
        """Number of channels of the images."""
        return len(self.mean)

    def fitting(self, size: int) -> int:
        """The smallest side that the network takes and that is not below `size`; the only one where it is fixed.

        >>> InputContract(multiple=14).fitting(160)
        168
        """
        return self.size if self.fixed else -(-size // self.multiple) * self.multiple


IMAGENET = InputContract()
"""224-px images normalized by ImageNet's mean and std, resized bilinearly."""
