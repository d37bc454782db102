"""Each method with a teacher as a whole run: it resumes, trains beside the others, takes kept vectors, and learns."""

import json
import os
import signal
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch

import tinyseed
from tinyseed.assets import CLOTHING_TEACHER, clothing
from tinyseed.engine import train as engine
from tinyseed.engine.train import train, train_students
from tinyseed.errors import InputError
from tinyseed.methods.catalog import distill_methods, spec_of
from tinyseed.models.teacher import Teacher
from tinyseed.signals import Stopped

METHODS = distill_methods()

OWN = {
    "seed": {"queue_size": 24, "teacher_temperature": 0.1},
    "contrastive": {"queue_size": 24},
    "compress": {"queue_size": 24},
    "seed-moco": {"queue_size": 24, "teacher_temperature": 0.1},
    "kmeans": {"clusters": 6},
    "online-clustering": {"queue_size": 24, "prototypes": 8},
}
"""Settings of a method's own that suit 54 images."""

VARIANTS = [
    *((name, {}) for name in METHODS),
    ("contrastive", {"loss": "nce"}),
    ("compress", {"student_queue": False, "projector": "linear"}),
    ("regress", {"loss": "cosine", "projector": "mlp-bn", "teacher_output": "backbone"}),
]
NAMES = ["-".join([name, *map(str, own.values())]) for name, own in VARIANTS]

SMALL = {
    "teacher": "test_resnet",
    "teacher_weights": "random",
    "student": "resnet10t",
    "epochs": 2,
    "batch_size": 12,
    "accumulate": 2,
    "image_size": 32,
    "lr": 0.3,
    "workers": 0,
    "precision": "32",
    "log_every": 1,
    "evaluate_every": 1,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))


def settings(name: str, photos: Path, out: Path, **changes):
    given = SMALL | OWN.get(name, {}) | changes
    return METHODS[name].settings(data=(str(photos),), out=out, **given)


def losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def tensors(content: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its path."""
    if torch.is_tensor(content):
        return {prefix: content}
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return {name: value for key, part in pairs for name, value in tensors(part, f"{prefix}.{key}").items()}


def assert_same(one: Path, other: Path) -> None:
    """The same losses, weights, momenta and state of the method, to the last bit."""
    assert losses(one) == losses(other)
    left, right = (
        tensors(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)) for out in (one, other)
    )
    assert left.keys() == right.keys()
    assert len(left) > 100
    assert not any("teacher" in name for name in left)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize(("name", "own"), VARIANTS, ids=NAMES)
def test_a_resumed_run_equals_the_unbroken_one(photos, tmp_path, monkeypatch, name, own):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = train(settings(name, photos, whole, **own), quiet=True)
    assert summary["command"] == METHODS[name].command
    real = engine.train_step

    def stops_in_the_sixth(runs, batches):
        outputs = real(runs, batches)
        if runs[0].step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    monkeypatch.setattr(engine, "train_step", stops_in_the_sixth)
    with pytest.raises(Stopped):
        train(settings(name, photos, broken, **own), quiet=True)
    monkeypatch.undo()
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))
    train(settings(name, photos, broken, **own, resume=True), quiet=True)
    assert_same(whole, broken)
    assert all(np.isfinite(losses(whole)))


def test_methods_train_together_on_one_pass_of_the_teacher_and_each_is_what_it_is_alone(
    photos, tmp_path, monkeypatch
):
    calls, call, step = [0], Teacher.__call__, engine.train_step

    def called(self, images):
        calls[0] += 1
        return call(self, images)

    def stepping(runs, batches):
        before = calls[0]
        outputs = step(runs, batches)
        assert calls[0] == before + 2  # micro-batches
        return outputs

    for name in METHODS:
        train(settings(name, photos, tmp_path / "alone" / name), quiet=True)
    monkeypatch.setattr(Teacher, "__call__", called)
    monkeypatch.setattr(engine, "train_step", stepping)
    together = {name: settings(name, photos, tmp_path / "runs" / name) for name in METHODS}
    found = train_students(together, quiet=True)
    assert [metrics["command"] for metrics in found.values()] == [spec.command for spec in METHODS.values()]
    for name in METHODS:
        assert_same(tmp_path / "runs" / name, tmp_path / "alone" / name)
    entries = json.loads((tmp_path / "runs" / "runs.json").read_text())["runs"]
    assert [entry["settings"]["method"] for entry in entries] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_kept_vectors_give_the_same_run_as_filling_them_and_nearly_that_without(photos, tmp_path, name):
    common = {"lr": 0.01, "teacher": str(CLOTHING_TEACHER), "teacher_weights": None}
    kept = common | {"cache_views": 1, "cache": tmp_path / "kept"}
    train(settings(name, photos, tmp_path / "filled", **kept), quiet=True)
    train(settings(name, photos, tmp_path / "replayed", **kept), quiet=True)
    assert_same(tmp_path / "filled", tmp_path / "replayed")
    train(settings(name, photos, tmp_path / "fresh", **common), quiet=True)
    first = slice(0, 4)  # of the first epoch; afterwards views repeat
    np.testing.assert_allclose(
        losses(tmp_path / "filled")[first], losses(tmp_path / "fresh")[first], rtol=1e-2, atol=1e-4
    )


@pytest.mark.slow
def test_two_processes_are_one(photos, tmp_path):
    """All methods at once; a network without batch norm, so that the losses are those of one process."""
    words = [word for own in OWN.values() for pair in own.items() for word in pair]
    flags = dict(zip(words[::2], words[1::2], strict=True)) | SMALL | {"accumulate": 1, "epochs": 2}
    flags |= {"student": "convnext_atto", "lr": 0.1}
    typed = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [
        sys.executable,
        "-m",
        "tinyseed.cli",
        "distill",
        "--data",
        str(photos),
        "--method",
        *METHODS,
        *typed,
    ]
    found = {}
    for processes in ("1", "2"):
        out = tmp_path / processes
        done = subprocess.run(
            [*command, "--out", str(out), "--devices", processes],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        found[processes] = {name: losses(out / name) for name in METHODS}
    for name in METHODS:
        assert len(found["1"][name]) == 8
        assert found["2"][name] == pytest.approx(found["1"][name], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_each_method_learns_from_the_bundled_teacher_on_real_photos(tmp_path):
    given = {"epochs": 4, "batch_size": 32, "accumulate": 1, "evaluate_every": 100, "validation_images": 512}
    given |= {
        "teacher": str(CLOTHING_TEACHER),
        "teacher_weights": None,
        "val_data": (str(clothing("train")),),
    }
    larger = {"queue_size": 256, "prototypes": 50, "clusters": 50}
    runs = {}
    for name in METHODS:
        own = {key: value for key, value in larger.items() if key in OWN.get(name, {})}
        lr = 0.02 if name == "compress" else 0.4  # of a fast student the queue of its own is soon out of date
        runs[name] = settings(name, clothing("test"), tmp_path / "runs" / name, lr=lr, **(given | own))
    found = train_students(runs, quiet=True)
    shown = {}
    for name, metrics in found.items():
        lines = map(json.loads, (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines())
        before = next(line["neighbour_agreement"] for line in lines if "neighbour_agreement" in line)
        shown[name] = (before, metrics["neighbour_agreement"], metrics["effective_rank"])
    assert all(after > before + 0.01 and rank > 3 for before, after, rank in shown.values()), shown


def test_the_report_names_the_method(photos, tmp_path):
    train(settings("regress", photos, tmp_path / "run"), quiet=True)
    page = unescape((tmp_path / "run" / "report.html").read_text())
    assert "distill --method regress" in page
    assert "The mean distance between the student's and the teacher's unit vectors." in page
    lineage = json.loads((tmp_path / "run" / "lineage.json").read_text())
    assert lineage["method"] == "distill --method regress"
    assert spec_of(settings("regress", photos, tmp_path)).command == lineage["method"]
    encoder = tinyseed.load(tmp_path / "run")
    assert encoder.dim == tinyseed.load_teacher("test_resnet", weights="random").dim


def test_a_run_of_one_method_is_not_resumed_as_another(photos, tmp_path):
    train(settings("regress", photos, tmp_path / "run", epochs=1), quiet=True)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"the run in .* is one of distill --method regress"):
        train(settings("seed", photos, tmp_path / "run", epochs=1, resume=True), quiet=True)


def test_several_methods_from_python_take_the_settings_that_they_have(photos, tmp_path):
    given = {name: value for name, value in SMALL.items() if name not in ("student", "epochs", "lr")}
    found = tinyseed.distill(
        data=photos,
        student="resnet10t",
        out=tmp_path / "runs",
        method=["seed", "regress"],
        grid={"teacher_temperature": [0.01, 0.1], "lr": [0.1]},
        queue_size=24,
        loss="cosine",
        epochs=1,
        **given,
    )
    seeds = [f"seed,teacher_temperature={value},lr=0.1" for value in (0.01, 0.1)]
    assert list(found) == [*seeds, "regress,lr=0.1"]
    configs = [json.loads((tmp_path / "runs" / name / "config.json").read_text()) for name in found]
    assert [config.get("queue_size") for config in configs] == [24, 24, None]
    assert configs[2]["loss"] == "cosine"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"method": "sed"}, "method=sed: give one of seed, regress, "),
        ({"method": []}, None),
        ({"method": ["seed", "seed"]}, "method=seed seed: give each value once"),
        ({"method": ["seed", "regress"], "temprature": 1}, "temprature=1: unknown setting"),
        ({"method": ["seed", "regress"], "recipe": "simreg"}, "recipe=simreg: is for one method; "),
        ({"method": "seed", "recipe": "simreg"}, "recipe=simreg: is for tinyseed distill --method regress; "),
        ({"method": "seed", "loss": "l2"}, "loss=l2: unknown setting"),
        ({"method": ["seed", "regress"], "grid": {"lss": ["l2"]}}, "grid=lss: there is no such setting"),
        ({"method": "compress", "student_queue": False}, "projector=none: the student has 512 dimensions, "),
    ],
)
def test_what_no_method_takes_is_refused(photos, tmp_path, given, told):
    if told is None:
        given, told = {"method": [], "student": []}, "student: missing"
    call = {"data": photos, "out": tmp_path / "run", **{name: SMALL[name] for name in SMALL if name != "lr"}}
    with pytest.raises(InputError) as caught:
        tinyseed.distill(**(call | given))
    assert str(caught.value).startswith(told)
    assert not (tmp_path / "run").exists()
