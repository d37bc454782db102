"""`evaluate transfer` as a user runs it."""

import json

import pytest

import tinyseed
from tinyseed.errors import RunError
from tinyseed.evaluation.transfer import TransferSettings, metric_for

MODEL = "random:resnet10t"


def test_transfer_linear_chooses_by_the_sets_own_metric(settings, tmp_path):
    report = tinyseed.evaluate(
        "transfer", model=MODEL, metric="mean-per-class", l2=(0.01, 1000.0), out=tmp_path, **settings
    )
    (row,) = report.results
    assert (row["mode"], row["metric"], row["l2"]) == ("linear", "mean_per_class", 0.01)
    assert row["mean_per_class"] >= 90
    assert json.loads((tmp_path / "evaluate-transfer.json").read_text())["results"] == [row]


@pytest.mark.parametrize(
    ("data", "metric"),
    [
        ("sets/SUN397/train", "top1"),
        ("cifar100/train.parquet", "top1"),
        ("oxford-iiit-pet/train", "mean_per_class"),
        ("sets/Pets", "mean_per_class"),
        ("caltech101", "mean_per_class"),
        ("fgvc-aircraft-2013b", "mean_per_class"),
        ("flowers-102/train", "mean_per_class"),
        ("torchvision:OxfordIIITPet:trainval", "mean_per_class"),
        ("carpets/train", "top1"),
    ],
)
def test_auto_metric_depends_on_the_name(data, metric):
    given = {"model": MODEL, "train_data": (data,), "test_data": ("x",)}
    assert metric_for(TransferSettings(**given)) == metric
    assert metric_for(TransferSettings(metric="top1", **given)) == "top1"


def test_transfer_fine_tunes_with_the_rate_that_validates_best(settings):
    given = {"model": MODEL, "mode": "finetune", "epochs": 2, "batch_size": 16, **settings}
    report = tinyseed.evaluate("transfer", lr=(1e-7, 1.0, 1e6), **given)
    (row,) = report.results
    assert row["lr"] == 1.0  # the first learns nothing, the last diverges
    alone = tinyseed.evaluate("transfer", lr=(1.0,), **given).results[0]
    assert alone["top1"] == row["top1"] >= 60
    assert "validation" not in alone
    with pytest.raises(RunError, match="diverged with every learning rate"):
        tinyseed.evaluate("transfer", lr=(9e5, 1e6), **given)
