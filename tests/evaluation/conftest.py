"""Small networks and pictures for the evaluations."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinyseed.evaluation.common import open_model

from tinyseed.models.encoder import Encoder

COLOURS = {"red": (210, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 210)}


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> tuple[Path, Path]:
    """Folders to train on (3 × 24) and to test on (3 × 8): noisy squares in one of three colours."""
    base = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(1)
    for part, count in (("train", 24), ("test", 8)):
        for name, fill in COLOURS.items():
            folder = base / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(-60, 60, (40, 40, 3))
                picture = np.clip(np.array(fill) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(folder / f"{part}-{name}-{number:02d}.png")
    return base / "train", base / "test"


@pytest.fixture
def changed(colours, tmp_path):
    """A copy of the two folders that a test may change."""
    for part in colours:
        shutil.copytree(part, tmp_path / part.name)
    return tmp_path / "train", tmp_path / "test"


@pytest.fixture
def small() -> Encoder:
    """A random network for 32-px images."""
    return open_model("random:resnet10t", 32)


@pytest.fixture
def settings(colours) -> dict:
    """What every evaluation of these tests is told."""
    train, test = colours
    return {"train_data": (str(train),), "test_data": (str(test),), "image_size": 32}
