"""The engine of a run's teacher: what is refused, and what is said and saved."""

import json

import pytest
import torch

import tinyseed
from tinyseed.engine import teacher_engine
from tinyseed.errors import InputError
from tinyseed.models.engines.base import EngineSpec

SMALL = {"epochs": 1, "batch_size": 16, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}


class Noisy:
    """The torch network with errors of a given size."""

    key = "noisy"

    def __init__(self, backbone, size):
        self.backbone, self.size = backbone, size

    def __call__(self, images):
        features = self.backbone(images)
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(len(images)))
        return features + self.size * features.std() * noise


def run(photos, out, engine="onnx", **changes):
    return tinyseed.distill(
        data=photos,
        teacher="resnet10t",
        teacher_weights="random",
        student="resnet10t",
        out=out,
        teacher_engine=engine,
        **(SMALL | changes),
    )


def replace(monkeypatch, build, missing=None):
    spec = EngineSpec("onnx", "a test", build, lambda: missing)
    monkeypatch.setitem(teacher_engine.ENGINES, "onnx", spec)


@pytest.mark.usefixtures("one_thread")
def test_an_engine_that_agrees_is_used_and_saved(photos, tmp_path, monkeypatch, capsys):
    replace(monkeypatch, lambda backbone, _: Noisy(backbone, 1e-4))
    summary = run(photos, tmp_path / "run")
    said = capsys.readouterr().err
    assert "teacher engine onnx: embeddings of 46 images agree with torch's to cosine 1.0000" in said
    assert summary["teacher_engine"] == "onnx"
    assert summary["teacher_engine_cosine"] > 0.999
    config, lineage = (
        json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("config", "lineage")
    )
    assert config["teacher_engine"] == lineage["teacher"]["engine"] == "onnx"
    assert lineage["teacher"]["engine_agreement"]["images"] == 46


@pytest.mark.usefixtures("one_thread")
def test_an_engine_that_does_not_agree_is_refused(photos, tmp_path, monkeypatch):
    replace(monkeypatch, lambda backbone, _: Noisy(backbone, 3))
    with pytest.raises(InputError, match=r"teacher_engine.*at least 0.999 .* give torch"):
        run(photos, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.usefixtures("one_thread")
def test_an_engine_that_cannot_run_is_refused(photos, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("no such operator\nand more")

    replace(monkeypatch, fails)
    with pytest.raises(
        InputError, match=r"onnx.*cannot compute this teacher \(no such operator\); give torch"
    ):
        run(photos, tmp_path / "run")
    replace(monkeypatch, fails, missing="the package spam")
    with pytest.raises(InputError, match=r"onnx.*needs the package spam; or give torch"):
        run(photos, tmp_path / "run")


@pytest.mark.usefixtures("one_thread")
def test_auto_is_torch_and_a_resumed_run_keeps_its_engine(photos, tmp_path):
    run(photos, tmp_path / "run", "auto")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["teacher_engine"] == "torch"
    with pytest.raises(InputError, match="teacher_engine"):
        run(photos, tmp_path / "run", "onnx", resume=True)
