"""Runs whose student learns from more than the teacher's rows: patch affinity, and SEED with MoCo."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinyseed.engine import train as engine
from tinyseed.engine.train import train, train_students
from tinyseed.files import cache_folder
from tinyseed.methods.seed import SeedSettings
from tinyseed.methods.seed_moco import SeedMoCoSettings
from tinyseed.models.teacher import Teacher
from tinyseed.settings.several import several
from tinyseed.settings.train import TrainSettings
from tinyseed.signals import Stopped

TIMES = {"images_per_s", "data_wait", "minutes"}
STUDENTS = ("test_resnet", "test_efficientnet")
KINDS = {
    "affinity": (SeedSettings, {"patch_affinity_weight": 0.5, "image_size": 64}),
    "affinity-crops": (
        SeedSettings,
        {"patch_affinity_weight": 0.5, "image_size": 64, "large_crops": 2, "small_crops": 1},
    ),
    "moco": (SeedMoCoSettings, {"ssl_weight": 0.5, "encoder_momentum": 0.9, "image_size": 32}),
}
SMALL = {
    "teacher": "test_resnet",
    "teacher_weights": "random",
    "epochs": 3,
    "batch_size": 12,
    "accumulate": 2,
    "queue_size": 32,
    "lr": 0.3,
    "workers": 0,
    "precision": "32",
    "log_every": 1,
    "evaluate_every": 1,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def saved_after_each_epoch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyseed.engine.run.CHECKPOINT_SHARE", 1e9)
        yield


def settings(kind: str, photos: Path, out: Path, **changes) -> TrainSettings:
    settings_class, own = KINDS[kind]
    given = {"student": STUDENTS[0], **SMALL, **own, **changes}
    return settings_class(data=(str(photos),), out=out, **given)


def losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def tensors(state, prefix="") -> dict[str, torch.Tensor]:
    if torch.is_tensor(state):
        return {prefix: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {name: value for key, part in pairs for name, value in tensors(part, f"{prefix}.{key}").items()}


def checkpoint(out: Path) -> dict[str, torch.Tensor]:
    return tensors(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True))


def assert_same(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    left, right = checkpoint(one), checkpoint(other)
    assert left.keys() == right.keys()
    assert len(left) > 50
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_resumes_bit_exactly(kind, photos, tmp_path, monkeypatch):
    train(settings(kind, photos, tmp_path / "unbroken"), quiet=True)
    step = engine.train_step

    def stops(runs, batches):
        outputs = step(runs, batches)
        if runs[0].step == 6:  # within an epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    monkeypatch.setattr(engine, "train_step", stops)
    broken = settings(kind, photos, tmp_path / "broken")
    with pytest.raises(Stopped):
        train(broken, quiet=True)
    monkeypatch.setattr(engine, "train_step", step)
    train(replace(broken, resume=True), quiet=True)
    assert_same(tmp_path / "broken", tmp_path / "unbroken")
    assert (tmp_path / "broken" / "student.safetensors").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_students_together_are_those_alone(kind, photos, tmp_path):
    of_kind, own = KINDS[kind]
    vary = "ssl_weight" if kind == "moco" else "patch_affinity_weight"
    grid = {vary: [0.0, 0.5]}
    common = {name: value for name, value in (SMALL | own).items() if name != vary}
    for precision in ("32", "bf16"):
        given = common | {"data": (str(photos),), "epochs": 2, "precision": precision}
        alone, together = (tmp_path / precision / name for name in ("alone", "together"))
        for of_run in several(of_kind, given | {"out": alone}, STUDENTS, grid).values():
            train(of_run, quiet=True)
        train_students(several(of_kind, given | {"out": together}, STUDENTS, grid), quiet=True)
        names = sorted(path.name for path in together.iterdir() if path.is_dir())
        assert len(names) == 4
        for name in names:
            assert_same(together / name, alone / name)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_weight_a_run_is_seeds(kind, photos, tmp_path):
    weights = {"patch_affinity_weight", "ssl_weight", "encoder_momentum"}
    own = KINDS[kind][1]
    weight = {name: 0.0 for name in own if name.endswith("_weight")}
    train(settings(kind, photos, tmp_path / "none", **weight), quiet=True)
    views = {name: value for name, value in own.items() if name not in weights}
    seed = SeedSettings(data=(str(photos),), out=tmp_path / "seed", student=STUDENTS[0], **views, **SMALL)
    train(seed, quiet=True)
    assert losses(tmp_path / "none") == losses(tmp_path / "seed")
    one, other = (load_file(tmp_path / name / "student.safetensors") for name in ("none", "seed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    train(settings(kind, photos, tmp_path / "some"), quiet=True)
    assert losses(tmp_path / "some") != losses(tmp_path / "seed")


def test_kept_patches_replay_without_the_teacher(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    kept = {"cache_views": 2, "cache_outputs": ("rows", "patches"), "val_data": (str(photos),)}
    train(settings("affinity", photos, tmp_path / "filling", **kept), quiet=True)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the teacher was asked")

    for name in ("_network", "outputs", "__call__"):
        monkeypatch.setattr(Teacher, name, refuse)
    train(settings("affinity", photos, tmp_path / "replay", **kept), quiet=True)
    assert_same(tmp_path / "replay", tmp_path / "filling")


def test_moco_beside_seed_uses_the_vectors_that_seed_has_kept(photos, tmp_path, monkeypatch, capfd):
    """The teacher sees the first view only, which is SEED's."""
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    kept = {"cache_views": 2, "val_data": (str(photos),)}
    own = {"student": STUDENTS[0], "image_size": 32, **SMALL}
    train(SeedSettings(data=(str(photos),), out=tmp_path / "seed", **own, **kept), quiet=True)
    assert len(list((cache_folder() / "teacher-vectors").iterdir())) == 1
    monkeypatch.setattr(Teacher, "_network", None)
    train(settings("moco", photos, tmp_path / "both", **kept))
    assert len(list((cache_folder() / "teacher-vectors").iterdir())) == 1
    assert "all there" in capfd.readouterr().err
