"""`evaluate linear` as a user runs it."""

import json

import pytest

import tinyseed
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.errors import InputError
from tinyseed.evaluation import classifier
from tinyseed.models.encoder import Encoder, build_projector

MODEL = "random:resnet10t"


def test_linear_fast_learns_colors(settings, tmp_path):
    report = tinyseed.evaluate("linear", model=MODEL, out=tmp_path, seeds=2, l2=(0.01, 0.1), **settings)
    (row,) = json.loads((tmp_path / "evaluate-linear.json").read_text())["results"]
    assert row == report.results[0]
    assert row["top1"] >= 90
    assert row["top1_std"] >= 0
    assert (row["protocol"], row["seeds"], row["converged"]) == ("fast", 2, True)
    assert "± " in (tmp_path / "evaluate-linear.md").read_text()


def test_linear_mocos_protocol_resumes_after_a_stop(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "SAVE_SECONDS", 0)
    given = {
        "model": MODEL,
        "protocol": "moco",
        "epochs": 3,
        "batch_size": 24,
        "seeds": 2,
        "limit": 48,
        **settings,
    }
    whole = tinyseed.evaluate("linear", **given)
    honest, epochs = classifier._epoch, []

    def stops(*given, epoch):
        epochs.append(epoch)
        if len(epochs) == 5:
            raise KeyboardInterrupt
        return honest(*given, epoch=epoch)

    monkeypatch.setattr(classifier, "_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        tinyseed.evaluate("linear", **given)
    resumed = tinyseed.evaluate("linear", **given)
    assert epochs == [0, 1, 2, 0, 1, 1, 2]  # the first seed was done, the second after one epoch
    assert resumed.results == whole.results
    assert whole.results[0]["lr"] == pytest.approx(30 * 24 / 256)


def test_the_papers_probe_is_a_recipe(settings):
    """Fewer epochs, otherwise as it is; MobileNet and EfficientNet take a tenth of the learning rate."""
    given = {"model": MODEL, "epochs": 2, "limit": 48, **settings}
    with pytest.raises(InputError, match="unknown recipe; give one of seed-linear, seed-linear-mobile, "):
        tinyseed.evaluate("linear", recipe="seed", **given)
    rows = {}
    for name, rate in (("seed-linear", 30.0), ("seed-linear-mobile", 3.0), ("swav-linear", 0.3)):
        report = tinyseed.evaluate("linear", recipe=name, **given)
        (rows[name],) = report.results
        assert (rows[name]["protocol"], rows[name]["batch_size"]) == ("moco", 48)
        assert rows[name]["lr"] == pytest.approx(rate * 48 / 256)
    assert report.settings["schedule"] == "cosine-epoch"
    plain = tinyseed.evaluate("linear", protocol="moco", **given)
    assert plain.results == (rows["seed-linear"],)


def test_a_probe_of_the_head(small, settings, tmp_path):
    save_encoder(tmp_path, Encoder(small.backbone, build_projector("linear", small.width, 8, seed=4)))
    given = {"model": tmp_path, "l2": 0.01, **settings}
    head, backbone = (
        tinyseed.evaluate("linear", model_output=output, **given) for output in ("head", "backbone")
    )
    assert head.results[0]["converged"]
    assert head.weights != backbone.weights
