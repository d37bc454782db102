"""Small networks and pictures for the evaluations."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyseed.evaluation import cost, logistic
from tinyseed.evaluation.run import open_model
from tinyseed.evaluation.splits import Splits, open_splits
from tinyseed.models.encoder import Encoder
from tinyseed.settings.evaluation import EvaluationSettings

COLORS = {"red": (210, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 210)}


@pytest.fixture(scope="session")
def colors(tmp_path_factory) -> tuple[Path, Path]:
    """Folders to train on (3 × 24) and to test on (3 × 8): noisy squares in one of three colors."""
    base = tmp_path_factory.mktemp("colors")
    generator = np.random.default_rng(1)
    for part, count in (("train", 24), ("test", 8)):
        for name, fill in COLORS.items():
            folder = base / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(-60, 60, (40, 40, 3))
                picture = np.clip(np.array(fill) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(folder / f"{part}-{name}-{number:02d}.png")
    return base / "train", base / "test"


@pytest.fixture
def changed(colors, tmp_path):
    """A copy of the two folders that a test may change."""
    for part in colors:
        shutil.copytree(part, tmp_path / part.name)
    return tmp_path / "train", tmp_path / "test"


@pytest.fixture(scope="session")
def small() -> Encoder:
    """A random network for 32-px images."""
    return open_model("random:resnet10t", 32)


@pytest.fixture
def settings(colors) -> dict:
    """Settings that all evaluations of these tests share."""
    train, test = colors
    return {"train_data": (str(train),), "test_data": (str(test),), "image_size": 32}


@pytest.fixture(scope="session")
def splits(colors) -> Splits:
    """Both folders, opened."""
    train, test = colors
    return open_splits(EvaluationSettings(train_data=(str(train),), test_data=(str(test),)))


@pytest.fixture
def quick(monkeypatch):
    """Few images timed, PyTorch alone; few strengths of L2."""
    honest = cost.cost
    monkeypatch.setattr(cost, "cost", lambda encoder, threads: honest(encoder, threads=threads, runs=2))
    monkeypatch.setattr("tinyseed.models.onnx_export.find_spec", lambda name: None)
    monkeypatch.setattr(logistic, "L2_GRID", (0.01, 0.1))
