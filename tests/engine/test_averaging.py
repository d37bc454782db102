"""The moving average of the weights: against its recursion in NumPy, in a run, and in a run that is resumed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tinyseed
from tinyseed.engine import train as engine
from tinyseed.engine.averaging import Average
from tinyseed.engine.monitor import Monitor
from tinyseed.engine.train import train
from tinyseed.errors import InputError
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.seed import SeedSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.signals import Stopped

DECAY = 0.7  # reached after 19 updates of (1 + t) / (10 + t)


def encoder() -> Encoder:
    backbone = build_backbone("resnet10t", seed=0, image_size=32)
    return Encoder(backbone, build_projector("mlp-bn", backbone.width, 8, 16, seed=0)).train()


def in_float64(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().numpy().copy() for name, value in state.items()}


def test_it_is_the_recursion_in_float64():
    network = encoder()
    average = Average(network, DECAY)
    expected = in_float64(network.state_dict())
    generator = torch.Generator().manual_seed(1)
    for step in range(24):
        with torch.no_grad():
            network(torch.randn(4, 3, 32, 32, generator=generator))  # the statistics move
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
        average.update(step)
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, value in in_float64(network.state_dict()).items():
            counts = name.endswith("num_batches_tracked")
            expected[name] = value if counts else decay * expected[name] + (1 - decay) * value
    found = average.encoder.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=1e-5, atol=1e-6, err_msg=name)
    apart = [name for name, value in network.state_dict().items() if not torch.equal(value, found[name])]
    assert any("running_var" in name for name in apart)


def test_it_is_frozen_and_leaves_the_network_as_it_is():
    network = encoder()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    average = Average(network, DECAY)
    average.update(0)
    assert not any(part.training for part in average.encoder.modules())
    assert not any(parameter.requires_grad for parameter in average.encoder.parameters())
    assert all(part.training for part in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def settings(photos: Path, out: Path, **changes) -> SeedSettings:
    """3 epochs of 4 steps of 12 images."""
    given = {
        "teacher": "resnet10t",
        "teacher_weights": "random",
        "student": "resnet10t",
        "epochs": 3,
        "batch_size": 12,
        "image_size": 32,
        "lr": 0.3,
        "workers": 0,
        "precision": "32",
        "log_every": 1,
        "evaluate_every": 1,
        "ema": DECAY,
    }
    return SeedSettings(data=(str(photos),), out=out, **given | changes)


def evaluations(out: Path) -> list[dict]:
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in logged if "loss" not in line]


def losses(out: Path) -> list[float]:
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in logged if "loss" in line]


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("averaged") / "run"
    train(settings(photos, out), quiet=True)
    return out


def checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def test_the_saved_files_hold_the_average(finished):
    state, average = checkpoint(finished), checkpoint(finished)["average"]
    student, head = (load_file(finished / f"{name}.safetensors") for name in ("student", "projector"))
    assert len(average) == len(state["module"]) == len(student) + len(head)
    for name, value in student.items():
        assert torch.equal(value, average[f"backbone.network.{name}"]), name
    for name, value in head.items():
        assert torch.equal(value, average[f"projector.{name}"]), name
    assert not torch.equal(state["module"]["projector.0.weight"], average["projector.0.weight"])
    with safe_open(finished / "student.safetensors", "pt") as file:
        assert file.metadata()["ema"] == str(DECAY)
    assert json.loads((finished / "summary.json").read_text())["ema"] == DECAY
    assert f"averaged weights (EMA {DECAY})" in (finished / "report.html").read_text()


def test_training_is_that_without_it_and_evaluations_are_of_the_average(photos, finished, tmp_path):
    train(settings(photos, tmp_path / "run", ema=0.0), quiet=True)
    assert losses(tmp_path / "run") == losses(finished)
    plain, averaged = checkpoint(tmp_path / "run"), checkpoint(finished)
    assert plain["average"] == {}
    assert all(torch.equal(value, averaged["module"][name]) for name, value in plain["module"].items())
    without, of_average = evaluations(tmp_path / "run"), evaluations(finished)
    assert without[0] == of_average[0]  # before the first step
    assert without[-1]["effective_rank"] != of_average[-1]["effective_rank"]
    assert "ema" not in json.loads((tmp_path / "run" / "summary.json").read_text())


def test_the_last_evaluation_is_that_of_the_saved_files(photos, tmp_path, monkeypatch):
    seen = []
    measure = Monitor.measure

    def measured(self, method, encoder, **how):
        seen.append({name: value.clone() for name, value in encoder.state_dict().items()})
        return measure(self, method, encoder, **how)

    monkeypatch.setattr(Monitor, "measure", measured)
    train(settings(photos, tmp_path / "run", epochs=1), quiet=True)
    saved = tinyseed.load(tmp_path / "run").state_dict()
    assert saved.keys() == seen[-1].keys()
    assert all(torch.equal(value, saved[name]) for name, value in seen[-1].items())


def test_a_resumed_run_goes_on_with_the_average_bit_by_bit(photos, finished, tmp_path, monkeypatch):
    out, real = tmp_path / "run", engine.train_step

    def stopping(runs, batches):
        if runs[0].step == 6:
            raise KeyboardInterrupt
        return real(runs, batches)

    monkeypatch.setattr("tinyseed.engine.run.CHECKPOINT_SHARE", 1e9)
    monkeypatch.setattr(engine, "train_step", stopping)
    with pytest.raises((KeyboardInterrupt, Stopped)):
        train(settings(photos, out), quiet=True)
    monkeypatch.undo()
    assert checkpoint(out)["step"] == 4
    with pytest.raises(InputError, match=rf"ema=0\.5: the run in .* has {DECAY}"):
        train(settings(photos, out, resume=True, ema=0.5), quiet=True)
    train(settings(photos, out, resume=True), quiet=True)
    for name in ("student.safetensors", "projector.safetensors"):
        one, other = load_file(out / name), load_file(finished / name)
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert evaluations(out) == evaluations(finished)


def test_a_checkpoint_without_the_average_is_refused(photos, finished, tmp_path):
    content = checkpoint(finished)
    content["average"] = {}
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "config.json").write_text((finished / "config.json").read_text())
    torch.save(content, out / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match="does not fit the run's networks"):
        train(settings(photos, out, resume=True), quiet=True)


def test_pretraining_averages_too(photos, tmp_path):
    given = {"epochs": 1, "batch_size": 12, "image_size": 32, "workers": 0, "precision": "32", "ema": DECAY}
    train(
        MoCoSettings(data=(str(photos),), out=tmp_path / "run", backbone="resnet10t", lr=0.3, **given),
        quiet=True,
    )
    average = checkpoint(tmp_path / "run")["average"]
    for name, value in load_file(tmp_path / "run" / "encoder.safetensors").items():
        assert torch.equal(value, average[f"backbone.network.{name}"]), name
