"""SimCLR, SwAV and MoCo v1 as whole runs on a folder of small pictures."""

import json
import os
import signal
from html import unescape
from pathlib import Path

import pytest
import torch

from tinyseed.engine import train as engine
from tinyseed.engine.train import train
from tinyseed.errors import InputError
from tinyseed.methods.moco import MoCoV1Settings
from tinyseed.methods.simclr import SimCLRSettings
from tinyseed.methods.swav import SwAVSettings
from tinyseed.settings.train import TrainSettings
from tinyseed.signals import Stopped

SMALL = {"image_size": 32, "workers": 0, "precision": "32", "log_every": 1, "batch_size": 9, "epochs": 3}
FEW = {"prototypes": 6, "small_crops": 2, "queue_size": 12, "queue_start_epoch": 1}


def config(kind: type, photos: Path, out: Path, **changes) -> TrainSettings:
    few = FEW if kind is SwAVSettings else {}
    settings = {"backbone": "resnet10t", "evaluate_every": 100, **SMALL, **few, **changes}
    return kind(data=(str(photos),), out=out, **settings)


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def tensors(content: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by its path."""
    if torch.is_tensor(content):
        return {prefix: content}
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return {name: value for key, part in items for name, value in tensors(part, f"{prefix}.{key}").items()}


def checkpoint(out: Path) -> dict[str, torch.Tensor]:
    return tensors(torch.load(out / "checkpoints" / "last.ckpt", weights_only=True))


@pytest.mark.parametrize(
    ("kind", "changes", "verb"),
    [
        (SimCLRSettings, {"batch_size": 18, "epochs": 6}, "pretrain simclr"),
        (SwAVSettings, {"batch_size": 18, "epochs": 6}, "pretrain swav"),
    ],
)
def test_each_method_learns_and_its_report_reads_right(photos, tmp_path, kind, changes, verb):
    out = tmp_path / "run"
    settings = config(kind, photos, out, lr=6.0, **changes)
    summary = train(settings)
    values = losses(out)
    assert len(values) == 18
    assert sum(values[-4:]) < 0.95 * sum(values[:4])
    assert summary["command"] == json.loads((out / "config.json").read_text())["command"] == verb
    assert summary["effective_rank"] > 1
    assert (out / "encoder.safetensors").exists()
    page = unescape((out / "report.html").read_text())
    assert f"{verb} · " in page
    assert "does not tell whether the features are good" in page
    for nonsense in ("teacher", "student of", "neighbors shared"):
        assert nonsense not in page.split("<h2>Settings")[0].split("</style>")[1], nonsense


def test_moco_v1_runs_with_its_settings(photos, tmp_path):
    out = tmp_path / "run"
    train(config(MoCoV1Settings, photos, out, epochs=2, lr=0.1), quiet=True)
    told = json.loads((out / "config.json").read_text())
    assert told["command"] == "pretrain moco-v1"
    assert (told["temperature"], told["projector"], told["augmentation"]) == (0.07, "linear", "v1")
    rates = [json.loads(line).get("lr") for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [rate for rate in rates if rate is not None]
    peak = 0.1 * 9 / 256
    assert max(rates) == pytest.approx(peak)
    assert rates[-1] == pytest.approx(peak / 100)


@pytest.mark.parametrize("kind", [SimCLRSettings, SwAVSettings])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(photos, tmp_path, monkeypatch, kind):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    short = (
        {"lr": 3.0, "epochs": 2, "queue_start_epoch": 0} if kind is SwAVSettings else {"lr": 3.0, "epochs": 2}
    )
    train(config(kind, photos, whole, **short), quiet=True)
    real_step = engine.train_step

    def stops_in_the_ninth(runs, batches):
        outputs = real_step(runs, batches)
        if runs[0].step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    monkeypatch.setattr(engine, "train_step", stops_in_the_ninth)
    with pytest.raises(Stopped):
        train(config(kind, photos, broken, **short), quiet=True)
    monkeypatch.undo()
    train(config(kind, photos, broken, **short, resume=True), quiet=True)
    assert losses(broken) == losses(whole)
    left, right = checkpoint(whole), checkpoint(broken)
    assert left.keys() == right.keys()
    assert len(left) > 100
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_prototypes_stand_still_in_the_first_epoch_and_then_move(photos, tmp_path, monkeypatch, optimizer):
    seen = []
    real_step = engine.train_step

    def looks(runs, batches):
        outputs = real_step(runs, batches)
        seen.append(runs[0].method.module.prototypes.weight.detach().clone())
        return outputs

    monkeypatch.setattr(engine, "train_step", looks)
    settings = {"epochs": 2, "lr": 3.0, "optimizer": optimizer, "queue_start_epoch": 0}
    train(config(SwAVSettings, photos, tmp_path / "run", **settings), quiet=True)
    assert len(seen) == 12
    assert all(weight.equal(seen[0]) for weight in seen[:6])
    assert not seen[6].equal(seen[0])
    for weight in seen:
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(6))
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["method"]
    assert int(state["queue.0.filled"]) == int(state["queue.1.filled"]) == 12


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (SimCLRSettings, {"batch_size": 1}, "batch_size=1: give at least 2"),
        (SimCLRSettings, {"batch_size": 4, "accumulate": 4}, "batch_size=4: give at least 8"),
        (
            SimCLRSettings,
            {"color_strength": 3.0},
            "color_strength=3.0: give a number from 0 to 2.5",
        ),
        (SimCLRSettings, {"final_lr": 1.0}, "final_lr=1.0: give a number up to `lr` 0.3"),
        (SwAVSettings, {"batch_size": 1}, "batch_size=1: give at least 2"),
        (SwAVSettings, {"large_crops": 1}, "large_crops=1: give a number from 2 to 64"),
        (SwAVSettings, {"small_crops": -1}, "small_crops=-1: give a number from 0 to 64"),
        (SwAVSettings, {"prototypes": 1}, "prototypes=1: give a number from 2 to 262144"),
        (SwAVSettings, {"epsilon": 0.0}, "epsilon=0.0: give a number above 0"),
        (
            SwAVSettings,
            {"small_crop_scale": (0.5, 0.2)},
            "small_crop_scale=0.5 0.2: give two fractions",
        ),
        (
            SwAVSettings,
            {"large_crop_scale": (0.0, 1.0)},
            "large_crop_scale=0.0 1.0: give two fractions",
        ),
        (
            SwAVSettings,
            {"large_crop_scale": (0.1, 1.5)},
            "large_crop_scale=0.1 1.5: give two fractions",
        ),
    ],
)
def test_settings_that_no_run_can_have(photos, tmp_path, kind, changes, told):
    with pytest.raises(InputError) as caught:
        config(kind, photos, tmp_path / "run", **changes).check()
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_network_that_takes_no_small_crops_is_refused(photos, tmp_path):
    """ConvNeXt halves its images five times, and 16 px leave nothing."""
    backbone = "convnext_atto"
    out = tmp_path / "run"
    with pytest.raises(InputError) as caught:
        train(config(SwAVSettings, photos, out, backbone=backbone), quiet=True)
    assert str(caught.value).startswith(f"small_crop_size=16: {backbone} cannot take crops of 16 px")
    assert "`small_crops` 0" in str(caught.value)
    assert not out.exists()


def test_a_run_from_before_a_setting_came_is_resumed(photos, tmp_path):
    out = tmp_path / "run"
    train(config(SimCLRSettings, photos, out, epochs=1), quiet=True)
    (out / "summary.json").unlink()
    told = json.loads((out / "config.json").read_text())
    del told["blur_probability"], told["recipe"], told["lars_scope"]
    (out / "config.json").write_text(json.dumps(told))
    train(config(SimCLRSettings, photos, out, epochs=1, resume=True), quiet=True)
    (out / "summary.json").unlink()
    (out / "config.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"blur_probability=0\.1: the run in .* has 0\.5"):
        train(config(SimCLRSettings, photos, out, epochs=1, resume=True, blur_probability=0.1), quiet=True)
