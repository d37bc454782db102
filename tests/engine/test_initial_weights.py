"""Runs whose network begins with given weights: what they evaluate, record, and need when they are resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinyseed import cli
from tinyseed.engine import train as engine
from tinyseed.engine.runs import open_runs
from tinyseed.engine.train import train
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.seed import SeedSettings
from tinyseed.models.teacher import weights_digest
from tinyseed.settings.train import TrainSettings

SMALL = {"epochs": 2, "batch_size": 12, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}


def settings(photos: Path, out: Path, **changes) -> TrainSettings:
    networks = {"teacher": "resnet10t", "teacher_weights": "random", "student": "resnet10t"}
    given = networks | {"val_data": (str(photos),), "evaluate_every": 1, "lr": 0.3} | SMALL | changes
    return SeedSettings(data=(str(photos),), out=out, **given)


def evaluations(out: Path) -> list[dict]:
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if "loss" not in line]


@pytest.fixture(scope="module")
def first(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("first") / "run"
    train(settings(photos, out, projector_hidden=64), quiet=True)
    return out


@pytest.fixture(scope="module")
def second(photos, first, tmp_path_factory) -> Path:
    """Begins where the first ended, with another head."""
    out = tmp_path_factory.mktemp("second") / "run"
    train(settings(photos, out, student_weights=str(first)), quiet=True)
    return out


def test_a_run_begins_where_the_other_ended(first, second):
    before, after = evaluations(first)[-1], evaluations(second)[0]
    assert (before["step"], after["step"]) == (10, 0)
    for name in ("knn_top1", "effective_rank", "neighbour_agreement"):
        assert after[name] == before[name], name
    summary = json.loads((second / "summary.json").read_text())
    assert summary["knn_top1_initial"] == before["knn_top1"]
    assert not [name for name in summary if name.endswith("_random")]


def test_where_the_weights_are_from_is_recorded(first, second):
    lineage = json.loads((second / "lineage.json").read_text())
    digest = weights_digest(load_file(first / "student.safetensors"))
    assert lineage["initial_weights"] == {"given": str(first), "digest": digest}
    assert json.loads((second / "config.json").read_text())["student_weights"] == str(first)
    assert "initial_weights" not in json.loads((first / "lineage.json").read_text())
    assert digest in (second / "report.html").read_text()


def test_a_resumed_run_needs_no_file(photos, first, second, tmp_path, monkeypatch):
    moved, real = tmp_path / "moved", engine.train_step
    shutil.copytree(first, moved)
    given = settings(photos, tmp_path / "run", student_weights=str(moved))

    def stopping(runs, batches):
        if runs[0].step == 7:
            raise KeyboardInterrupt
        return real(runs, batches)

    monkeypatch.setattr("tinyseed.engine.run.CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(engine, "train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(given, quiet=True)
    monkeypatch.undo()
    shutil.rmtree(moved)
    train(given.replaced(resume=True), quiet=True)
    one, other = (load_file(out / "student.safetensors") for out in (tmp_path / "run", second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_both_of_mocos_encoders_begin_with_them(photos, first, tmp_path):
    weights = str(first / "student.safetensors")
    given = MoCoSettings(
        data=(str(photos),), out=tmp_path / "run", backbone="resnet10t", backbone_weights=weights, **SMALL
    )
    with open_runs({"": given}, quiet=True) as runs:
        (run,) = runs.all
        for name, value in load_file(weights).items():
            for encoder in (run.method.encoder, run.method.contrast.key_encoder):
                assert torch.equal(encoder.backbone.network.state_dict()[name], value), name


def test_a_grid_may_compare_weights(photos, first, tmp_path):
    out = tmp_path / "runs"
    small = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    networks = ["--teacher", "resnet10t", "--teacher-weights", "random", "--student", "resnet10t"]
    grid = ["--grid", f"student_weights={first},{first / 'student.safetensors'}"]
    assert cli.run(["distill", "--data", str(photos), "--out", str(out), *networks, *small, *grid]) == 0
    one, other = (load_file(path) for path in sorted(out.glob("*/student.safetensors")))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["--student", "resnet18", "--student-weights", "RUN"],
            "--student-weights: RUN: holds weights of resnet10t, not of resnet18; give weights of that, or "
            "--student resnet10t",
        ),
        (
            ["--student", "resnet10t", "--student-weights", "RUN", "--student-prefix", "encoder_q"],
            "--student-prefix: encoder_q: RUN holds one network; leave this out",
        ),
    ],
)
def test_wrong_weights_are_refused_in_one_line(photos, first, tmp_path, capsys, given, told):
    out = tmp_path / "run"
    typed = [word.replace("RUN", str(first)) for word in given]
    teacher = ["--teacher", "resnet10t", "--teacher-weights", "random"]
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["distill", "--data", str(photos), "--out", str(out), "--batch-size", "12", *teacher, *typed]
        )
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"tinyseed: error: {told.replace('RUN', str(first))}"
    assert not out.exists()
