"""Crop boxes have the distribution of torchvision's RandomResizedCrop; sizes are read from JPEG headers."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms.v2 import RandomResizedCrop

from tinyseed.data.addressed import uniforms
from tinyseed.data.crop import CROP_DRAWS, Box, crop_box, jpeg_size, largest_reduction, reduced_box

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
BOXES = 3000


def our_boxes(width: int, height: int, scale=SCALE, ratio=RATIO, n: int = BOXES) -> np.ndarray:
    draws = uniforms(0, 0, np.arange(n), "crop-0", CROP_DRAWS)
    return np.array([crop_box(width, height, row, scale, ratio) for row in draws])


def torchvision_boxes(width: int, height: int, scale=SCALE, ratio=RATIO, n: int = BOXES) -> np.ndarray:
    transform = RandomResizedCrop(1, scale=scale, ratio=ratio)
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [transform.make_params([image]) for _ in range(n)]
    return np.array([(b["left"], b["top"], b["left"] + b["width"], b["top"] + b["height"]) for b in drawn])


def properties(boxes: np.ndarray, width: int, height: int) -> dict[str, np.ndarray]:
    left, top, right, bottom = boxes.T
    with np.errstate(invalid="ignore"):
        across, down = left / (width - (right - left)), top / (height - (bottom - top))
    return {
        "area": (right - left) * (bottom - top) / (width * height),
        "aspect": np.log((right - left) / (bottom - top)),
        "across": across[np.isfinite(across)],
        "down": down[np.isfinite(down)],
    }


# The last two need many tries, or take the middle, which then has no freedom in height.
@pytest.mark.parametrize(("width", "height"), [(500, 375), (160, 213), (64, 64), (400, 250), (1000, 120)])
def test_distribution_is_torchvisions(width: int, height: int) -> None:
    ours = properties(our_boxes(width, height), width, height)
    theirs = properties(torchvision_boxes(width, height), width, height)
    for name, values in ours.items():
        if len(values):
            assert stats.ks_2samp(values, theirs[name]).pvalue > 1e-3, name


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (500, 375), (10, 1000)])
def test_boxes_are_whole_and_within_the_image(width: int, height: int) -> None:
    boxes = our_boxes(width, height, n=300)
    assert np.array_equal(boxes, boxes.astype(int))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()


@pytest.mark.parametrize(("width", "height"), [(1000, 20), (20, 1000), (40, 40)])
def test_the_middle_where_nothing_fits(width: int, height: int) -> None:
    """Areas of 0.99 to 1 fit into no long image; torchvision then takes the same part."""
    scale = (0.999, 1.0) if width != height else (5.0, 6.0)
    ours, theirs = our_boxes(width, height, scale, n=5), torchvision_boxes(width, height, scale, n=1)
    assert np.array_equal(ours, np.repeat(theirs, 5, 0))


def test_extreme_draws_reach_both_edges() -> None:
    last = math.nextafter(1, 0)
    assert crop_box(100, 100, np.full(CROP_DRAWS, 0.0), (0.25, 1), (1, 1)) == (0, 0, 50, 50)
    draws = np.tile([0.0, 0.0, last, last], CROP_DRAWS // 4)
    assert crop_box(100, 100, draws, (0.25, 1), (1, 1)) == (50, 50, 100, 100)


def encoded(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **{"format": "JPEG", **options})
    return stream.getvalue()


def test_size_in_the_header_of_a_jpeg() -> None:
    image = Image.new("RGB", (301, 207))
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in (
        {},
        {"progressive": True},
        {"exif": exif},
        {"comment": b"x" * 60_000},
        {"icc_profile": b"y" * 9},
    ):
        assert jpeg_size(encoded(image, **options)) == (301, 207)
    assert jpeg_size(encoded(Image.new("L", (5, 70_00)))) == (5, 7000)
    filled = encoded(image)
    assert jpeg_size(filled[:2] + b"\xff\xff" + filled[2:]) == (301, 207)


def test_no_size_where_there_is_none() -> None:
    whole = encoded(Image.new("RGB", (301, 207)))
    for length in range(0, 140):
        assert jpeg_size(whole[:length]) is None
    assert jpeg_size(encoded(Image.new("RGB", (301, 207)), format="PNG")) is None
    assert jpeg_size(b"\xff\xd8" + b"\xff\xe0\x00\x00" * 50) is None
    assert jpeg_size(b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x00\x03\x01\x11") is None


def test_reduction_keeps_twice_the_view() -> None:
    def whole(width: int, height: int) -> Box:
        return Box(0, 0, width, height)

    def quarter(width: int, height: int) -> Box:
        return Box(0, 0, width / 2, height / 2)

    assert largest_reduction((4000, 3000), whole, 64) == 8
    assert largest_reduction((4000, 3000), whole, 224) == 4
    assert largest_reduction((4000, 3000), quarter, 224) == 2
    assert largest_reduction((896, 896), whole, 224) == 2
    assert largest_reduction((895, 4000), whole, 224) == 1


@pytest.mark.parametrize("turned", [False, True])
def test_a_box_follows_the_reduction(turned: bool) -> None:
    def choose(width: int, height: int) -> Box:
        return Box(0.1 * width, 0.2 * height, width, 0.8 * height)

    image = Image.new("RGB", (76, 101) if turned else (101, 76))
    box = reduced_box(image, (401, 301), choose)
    assert box == pytest.approx((0.1 * image.width, 0.2 * image.height, image.width, 0.8 * image.height))
