"""Small crops beside the large views of an image (multi-crop): how large they are, and whether a network takes them.

Source: Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), section 3.2; SEED's code uses them with SwAV teachers.
"""

from typing import Literal

from tinyseed.errors import InputError
from tinyseed.methods.parts import encoder, torch
from tinyseed.settings.base import Range

SMALLEST_CROP = 8
"""Side in pixels of the smallest crop that "auto" chooses; it chooses multiples of this."""

SMALL_CROPS = Range(0, 64)
"""Numbers of small crops; each is decoded, rendered and computed."""


def small_crop_size(given: int | Literal["auto"], image_size: int) -> int:
    """Side of the small crops in pixels: 3/7 of the large ones', in steps of 8, unless it is given.

    >>> small_crop_size("auto", 224), small_crop_size("auto", 32), small_crop_size(20, 32)
    (96, 16, 20)
    """
    if given != "auto":
        return given
    return max(SMALLEST_CROP, round(image_size * 3 / 7 / SMALLEST_CROP) * SMALLEST_CROP)


def require_small_crops(trained: "encoder.Encoder", given: int | Literal["auto"], network: str) -> None:
    """Compute one small crop: some networks take images of one size only, others none that small.

    Args:
        trained: the network, which expects the large views.
        given: side of the small crops.
        network: the setting that names it.

    Raises:
        InputError: it cannot take them.
    """
    expected = trained.input
    size = small_crop_size(given, expected.size)
    training = trained.training
    try:
        with torch.no_grad():
            trained.eval()(torch.zeros(1, expected.channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        remedy = (
            f"{trained.backbone.name} cannot take crops of {size} px beside {expected.size} px; give another "
            f"size, `small_crops` 0, or another `{network}`"
        )
        raise InputError(given, remedy, argument="small_crop_size") from error
    finally:
        trained.train(training)
