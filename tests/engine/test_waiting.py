"""The host never waits for a GPU inside a training step; seen without a GPU, in the operations that a step calls.

On a GPU a number that Python needs (`.item()`, `float`, `bool`), a shape that depends on values (`nonzero`, a mask as
an index) and a tensor made from Python's numbers (`torch.tensor(…)`, a list as an index) stop the host until all that
came before has been computed. On the CPU they cost nothing, so nobody would notice.
"""

from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tinyseed.api import DISTILL_METHODS
from tinyseed.engine.run import Run
from tinyseed.engine.runs import open_runs
from tinyseed.engine.train import train_step
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.seed import SeedSettings
from tinyseed.methods.seed_moco import SeedMoCoSettings
from tinyseed.methods.simclr import SimCLRSettings
from tinyseed.methods.swav import SwAVSettings

READ = {"_local_scalar_dense", "equal", "is_nonzero", "item"}
"""They hand a value to Python."""

SHAPED_BY_VALUES = {"nonzero", "nonzero_static", "masked_select", "_unique2", "unique_dim", "bincount"}
"""They return as many rows as the values say."""

FROM_PYTHON = {"lift_fresh", "lift_fresh_copy"}
"""What `torch.tensor(…)` ends with."""


class WaitedError(AssertionError):
    """The host would have waited for a GPU."""


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait. Tensors of before are on the device, as far as `known` says so."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self._on_device = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._kept: list[torch.Tensor] = []  # so that no other tensor gets their memory

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function.name().removeprefix("aten::").partition(".")[0]
        if name in READ | SHAPED_BY_VALUES | FROM_PYTHON:
            raise WaitedError(name)
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            raise WaitedError(name)
        if name in {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    raise WaitedError("a mask as an index")
                if index is not None and index.untyped_storage().data_ptr() not in self._on_device:
                    raise WaitedError("an index that is not on the device")
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._on_device.add(tensor.untyped_storage().data_ptr())
                self._kept.append(tensor)
        return result


class NoReading(TorchFunctionMode):
    """Raises where a whole tensor is handed to Python; on the CPU that calls no operation."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in {"tolist", "numpy", "cpu", "__array__"}:
            raise WaitedError(name)
        return function(*args, **(kwargs or {}))


SMALL = {"batch_size": 8, "image_size": 32, "workers": 0, "precision": "32", "validation_images": 4}
NETWORK = {"backbone": "resnet10t", **SMALL}
TEACHER = {"teacher": "resnet10t", "teacher_weights": "random", "student": "resnet10t", **SMALL}
CHANNELS = {"teacher_bands": (3, 2, 1), "teacher_image_size": 64}
SHORT_QUEUE = {"queue_size": 16}
STRATEGIES = {
    "regress": {"teacher_output": "backbone"},
    "contrastive": SHORT_QUEUE | {"loss": "nce"},
    "compress": SHORT_QUEUE,
    "kmeans": {"clusters": 4},
    "online-clustering": SHORT_QUEUE | {"prototypes": 8},
}
RUNS = {
    **{name: (DISTILL_METHODS[name], TEACHER | own) for name, own in STRATEGIES.items()},
    "seed": (SeedSettings, TEACHER | CHANNELS | {"queue_size": 16, "accumulate": 2, "precision": "bf16"}),
    "seed-crops": (
        SeedSettings,
        TEACHER | {"queue_size": 16, "large_crops": 2, "small_crops": 2, "mixup": 0.5},
    ),
    "patch-affinity": (
        SeedSettings,
        TEACHER
        | {"queue_size": 16, "image_size": 64, "teacher_image_size": 96, "patch_affinity_weight": 0.5},
    ),
    "seed-moco": (SeedMoCoSettings, TEACHER | CHANNELS | {"queue_size": 16, "accumulate": 2}),
    "moco-v2": (MoCoSettings, NETWORK | {"queue_size": 16}),
    "averaged": (
        MoCoSettings,
        NETWORK | {"optimizer": "adamw", "lr": 0.001, "clip_gradients": 1.0, "ema": 0.9},
    ),
    "simclr": (SimCLRSettings, NETWORK | {"optimizer": "lars"}),
    "swav": (SwAVSettings, NETWORK | {"prototypes": 8, "queue_size": 16, "queue_start_epoch": 0}),
}


def run_steps(settings: Any, change: Callable[[Run], None] = lambda run: None) -> None:
    """A few steps, of which all but the first must not wait: it fills caches and makes the momenta."""
    with open_runs({"": settings}, quiet=True) as runs:
        (run,) = runs.all
        change(run)
        with closing(runs.batches()) as loaded:
            batches = list(islice(loaded, 4 * settings.accumulate))
        steps = iter(batches)
        for _ in range(2):
            run.took(*train_step([run], steps))
        held = [
            tensor for batch in batches for draws in batch.draws for tensor in (draws.rows, draws.numbers)
        ]
        with NoReading(), NoWaiting(held):
            for _ in range(2):
                run.took(*train_step([run], steps))


def settings_of(name: str, photos: Path, out: Path) -> Any:
    kind, given = RUNS[name]
    return kind(data=(str(photos),), out=out, **given)


def test_every_method_is_looked_at():
    assert {kind for kind, _ in RUNS.values()} >= set(DISTILL_METHODS.values())


@pytest.mark.parametrize("name", RUNS)
def test_a_step_never_waits_for_the_device(name, photos, tmp_path, one_thread):
    run_steps(settings_of(name, photos, tmp_path))


WAITS = {
    "item": lambda rows: rows.sum().item(),
    "float": lambda rows: float(rows.sum()),
    "bool": lambda rows: bool(rows.sum() > 0),
    "tolist": lambda rows: rows.tolist(),
    "cpu": lambda rows: rows.cpu(),
    "equal": lambda rows: torch.equal(rows, rows),
    "nonzero": lambda rows: (rows > 0).nonzero(),
    "mask": lambda rows: rows[rows > 0],
    "list as an index": lambda rows: rows[:, [1, 0]],
    "tensor of numbers": lambda rows: rows * torch.tensor([2.0]),
    "repeats": lambda rows: rows.repeat_interleave(rows[:, 0].long(), 0),
}


@pytest.mark.parametrize("how", WAITS)
def test_each_way_to_wait_is_seen(how):
    rows = torch.ones(2, 2)
    with pytest.raises(WaitedError), NoReading(), NoWaiting([rows]):
        WAITS[how](rows)


def test_a_method_that_looks_at_its_loss_is_found(photos, tmp_path, one_thread):
    def change(run: Run) -> None:
        step = run.method.step

        def curious(*arguments: Any) -> Any:
            output = step(*arguments)
            assert output.loss.item() >= 0
            return output

        run.method.step = curious

    with pytest.raises(WaitedError, match="_local_scalar_dense"):
        run_steps(settings_of("moco-v2", photos, tmp_path), change)


def test_transfers_to_a_gpu_start_from_page_locked_memory(monkeypatch, photos, tmp_path, one_thread):
    """From other memory even a transfer that need not be waited for is waited for."""
    pinned: set[int] = set()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        pinned.add(copy.data_ptr())
        return copy

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    settings = settings_of("moco-v2", photos, tmp_path)
    with open_runs({"": settings}, quiet=True) as runs, closing(runs.batches()) as batches:
        batch = next(batches).pin_memory()
    moved = [*batch.pixels, *(tensor for draws in batch.draws for tensor in (draws.rows, draws.numbers))]
    assert len(moved) == 6
    assert {tensor.data_ptr() for tensor in moved} <= pinned
