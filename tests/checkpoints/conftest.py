"""Listings of public checkpoints, and random tensors for them."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

# Beside the checkout, or where this variable says.
SHARED = Path(os.environ.get("TINYSEED_SHARED") or Path(__file__).resolve().parents[3] / "shared")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test here."""


@pytest.fixture(scope="session")
def listing():
    """Tensor names, shapes and dtypes of a public checkpoint, and the layout of the file around them."""
    folder = SHARED / "formats"
    if not folder.is_dir():
        pytest.skip("needs the shared listings of formats beside the checkout")
    return lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def random_tensors():
    """Random values for a listing's tensors, such that activations neither vanish nor explode.

    Tensors whose names begin with one of `unused` are one number, repeated without memory.
    """

    def make(tensors, unused=(), seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {
            name: _repeated(shape, dtype)
            if name.startswith(unused)
            else _random(name, shape, dtype, generator)
            for name, (shape, dtype) in tensors.items()
        }

    return make


def _repeated(shape, dtype):
    return torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)


def _random(name, shape, dtype, generator):
    if dtype == "int64":
        return torch.ones(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
    if name.endswith("weight"):
        return 0.5 + 0.5 * torch.rand(shape, generator=generator)
    return 0.1 * torch.randn(shape, generator=generator)


@pytest.fixture(scope="session")
def wrapped():
    """A listing's tensors in the layout of their file."""

    def wrap(state, layout):
        if isinstance(layout, str):
            return state
        values = {
            "epoch": 200,
            "arch": "resnet50",
            "scaler": {"scale": 65536.0},
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
        }
        return {key: values.get(key, state) for key in layout}

    return wrap
