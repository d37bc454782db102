"""Runs before any test: shapes are checked at run time, data that may be absent skips with its reason."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

# One thread for each of several test processes: oneDNN's threads wait in a spin, and would wait for each other. The
# process that starts them has imported this file before, and its environment is theirs.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook
from PIL import Image, ImageDraw

# Every annotated function of tinyseed checks its shapes and dtypes while the tests run; an int may stand for a float.
_checker = ModuleType("tinyseed_type_checker")
_checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # pyright: ignore[reportAttributeAccessIssue]
sys.modules[_checker.__name__] = _checker
install_import_hook("tinyseed", "tinyseed_type_checker.check")

from tinyseed.torchvision_ops import ensure_torchvision  # noqa: E402  (the hook has to come first)

ensure_torchvision()

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data packs beside the checkout; a public clone has none."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared data packs beside the checkout, which a public clone does not have")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test session indexes into a folder of its own, never into the user's cache."""
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors and networks take longer on several threads, and much longer if other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small JPEG pictures of two classes, red-ish squares and blue-ish discs, in two sub-folders."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, fill in (("disc", (40, 60, 200)), ("square", (200, 60, 40))):
        (folder / name).mkdir()
        for number in range(30):
            noise = generator.integers(0, 120, (40, 48, 3), dtype=np.uint8)
            picture = Image.fromarray(noise)
            x, y, side = generator.integers(2, 20, 3)
            shape = (int(x), int(y), int(x + side + 6), int(y + side + 6))
            draw = ImageDraw.Draw(picture)
            draw.ellipse(shape, fill=fill) if name == "disc" else draw.rectangle(shape, fill=fill)
            picture.save(folder / name / f"{number:02d}.jpg", quality=90)
    return folder
