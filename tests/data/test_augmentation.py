"""Settings of the augmentation that cannot be drawn are refused."""

import math

import pytest

from tinyseed.data.augmentation import ViewSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.1)},
        {"crop_scale": (0.6, 0.5)},
        {"crop_ratio": (0.0, 1.0)},
        {"crop_ratio": (2.0, 1.0)},
        {"brightness": -0.1},
        {"contrast": math.inf},
        {"saturation": math.nan},
        {"hue": 0.6},
        {"jitter_probability": 1.1},
        {"gray_probability": -0.1},
        {"blur_sigma": (0.0, 2.0)},
        {"blur_sigma": (3.0, 2.0)},
        {"blur_probability": 2.0},
        {"flip_probability": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        ViewSettings(**wrong)
