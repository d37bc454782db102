"""Settings of the random augmentation, and of the views that a method takes of an image."""

import math
from dataclasses import dataclass

SIMCLR_CROPS = (0.08, 1.0)
SWAV_CROPS = (0.14, 1.0)
"""Smallest and largest share of an image's area that SimCLR's crops and SwAV's large ones cover."""


@dataclass(frozen=True)
class ViewSettings:
    """The random augmentation; by default that of MoCo v2, which SEED trains with.

    Attributes:
        crop_scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        crop_ratio: smallest and largest width / height of a crop.
        brightness, contrast, saturation: a factor is drawn from [max(0, 1 − value), 1 + value].
        hue: a shift is drawn from [−value, value], in turns of the color circle; at most 0.5.
        blur_sigma: smallest and largest standard deviation, in pixels of the view.

    Raises:
        ValueError: a value is out of its range.

    Source: Chen et al. 2020 (MoCo v2), arXiv 2003.04297, section 3, and its published settings; Fang et al. 2021
        (SEED), section 4.1.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.5
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings that cannot be drawn."""
        for name in ("brightness", "contrast", "saturation"):
            _require(0 <= getattr(self, name) < math.inf, name, self, "at least 0")
        for name in ("jitter", "gray", "blur", "flip"):
            _require(0 <= getattr(self, f"{name}_probability") <= 1, f"{name}_probability", self, "in [0, 1]")
        for name, largest in (("crop_scale", 1.0), ("crop_ratio", math.inf), ("blur_sigma", math.inf)):
            low, high = getattr(self, name)
            span = "above 0, the first not above the second" + (", at most 1" if largest == 1 else "")
            _require(0 < low <= high <= largest and high < math.inf, name, self, span)
        _require(0 <= self.hue <= 0.5, "hue", self, "in [0, 0.5]")


def color_distortion(
    strength: float, crop_scale: tuple[float, float], blur_probability: float
) -> ViewSettings:
    """SimCLR's augmentation: jitter of 0.8, 0.8, 0.8 and 0.2 times a strength, gray, blur.

    Args:
        strength: 1 on ImageNet, 0.5 on small images; at most 2.5.
        crop_scale: smallest and largest share of the image's area; SimCLR's is 0.08 to 1.
        blur_probability: 0.5 on ImageNet, 0 on small images.

    Raises:
        ValueError: a value is out of its range.

    Source: Chen et al., SimCLR, ICML 2020 (arXiv 2002.05709), appendix A; SwAV (arXiv 2006.09882) uses the same.
    Differs: the four color changes are in random order, as in the published code, not in the paper's; brightness is
        multiplied as in SimCLR v2, where v1 adds to it; the blur reaches to 4 σ, not to a tenth of the image; crops are
        tried 10 times, not 100.
    """
    return ViewSettings(
        crop_scale=crop_scale,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        blur_probability=blur_probability,
    )


def published(name: str, blur_probability: float) -> ViewSettings:
    """The augmentation that a method was published with.

    Args:
        name: "moco-v2", "moco-v1", "simclr" or "swav".
        blur_probability: fraction of the views that are blurred; 0 for MoCo v1's, otherwise 0.5.

    Source: the published code of MoCo (main_moco.py; v1's is that of InstDisc), SimCLR (data_util.py) and SwAV
        (multicropdataset.py and its scripts).
    Differs: v1's code converts views to grayscale before the jitter; here that always comes after it.
    """
    match name:
        case "moco-v2":
            return ViewSettings(blur_probability=blur_probability)
        case "moco-v1":
            return ViewSettings(hue=0.4, jitter_probability=1.0, blur_probability=blur_probability)
        case "simclr":
            return color_distortion(1.0, SIMCLR_CROPS, blur_probability)
        case "swav":
            return color_distortion(1.0, SWAV_CROPS, blur_probability)
        case _:
            raise ValueError(f"no augmentation is called {name}")


def _require(holds: bool, name: str, settings: ViewSettings, span: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {span}; got {getattr(settings, name)}")


@dataclass(frozen=True)
class View:
    """One random view of each image.

    Attributes:
        settings: the augmentation.
        size: side in pixels.
    """

    settings: ViewSettings
    size: int
