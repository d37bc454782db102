"""linear, semi, transfer and retention as a user runs them."""

import json
import math

import numpy as np
import pytest
import torch
from tinyseed.evaluation.choose import find_evaluation, names

import tinyseed
from tinyseed.data.sources import open_source
from tinyseed.errors import InputError, RunError
from tinyseed.evaluation import classifier, probe, retention
from tinyseed.evaluation.logistic import fit_logistic
from tinyseed.evaluation.transfer import TransferConfig, metric_for

MODEL = "random:resnet10t"


def read(folder, name: str) -> dict:
    return json.loads((folder / f"evaluate-{name}.json").read_text())


def test_linear_fast_learns_colours(settings, tmp_path):
    report = tinyseed.evaluate("linear", model=MODEL, out=tmp_path, seeds=2, **settings)
    (row,) = read(tmp_path, "linear")["results"]
    assert row == report.results[0]
    assert row["top1"] >= 90
    assert row["top1_std"] >= 0
    assert (row["protocol"], row["seeds"], row["converged"]) == ("fast", 2, True)
    assert "± " in (tmp_path / "evaluate-linear.md").read_text()


def test_linear_mocos_protocol_goes_on_after_a_stop(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "SAVE_SECONDS", 0)
    given = {"model": MODEL, "protocol": "moco", "epochs": 3, "batch_size": 24, "seeds": 2, **settings}
    whole = tinyseed.evaluate("linear", **given)
    honest, epochs = classifier._epoch, []

    def stops(*args, epoch, **more):
        epochs.append(epoch)
        if len(epochs) == 5:
            raise KeyboardInterrupt
        return honest(*args, epoch=epoch, **more)

    monkeypatch.setattr(classifier, "_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        tinyseed.evaluate("linear", **given)
    resumed = tinyseed.evaluate("linear", **given)
    assert epochs == [0, 1, 2, 0, 1, 1, 2]  # the first seed was done, the second after one epoch
    assert resumed.results == whole.results
    assert whole.results[0]["lr"] == pytest.approx(30 * 24 / 256)


def test_semi_saves_its_subsets_and_takes_them_again(settings, colours, tmp_path):
    given = {"model": MODEL, "epochs": 2, **settings}
    report = tinyseed.evaluate("semi", fraction=(0.05, 0.25), out=tmp_path / "a", **given)
    assert [(row["subset"], row["images"]) for row in report.results] == [("0.05", 4), ("0.25", 18)]
    assert all(math.isfinite(row["top1"]) for row in report.results)
    lines = (tmp_path / "a" / "semi-subset-0.25.txt").read_text().splitlines()
    source = open_source([str(colours[0])])
    all_names = [source.name(index) for index in range(len(source))]
    assert source.labels is not None
    chosen = source.labels[[all_names.index(line) for line in lines]]
    assert np.bincount(chosen).tolist() == [6, 6, 6]
    again = tinyseed.evaluate(
        "semi", subset=[tmp_path / "a" / "semi-subset-0.25.txt"], out=tmp_path / "b", **given
    )
    assert again.results[0] == report.results[1]
    assert (tmp_path / "b" / "semi-subset-0.25.txt").read_text().splitlines() == lines


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"fraction": (0.0,)}, "--fraction: 0.0: "),
        ({"fraction": (1.5,)}, "--fraction: 1.5: "),
        ({"batch_size": 1}, "--batch-size: 1: "),
        ({"lr": -1.0}, "--lr: -1.0: "),
    ],
)
def test_semi_refuses_settings_out_of_range(settings, setting, told):
    with pytest.raises(InputError) as caught:
        tinyseed.evaluate("semi", model=MODEL, **settings, **setting)
    assert str(caught.value).startswith(told)


def test_a_subset_of_one_class_is_refused(settings, tmp_path):
    path = tmp_path / "reds.txt"
    path.write_text("train-red-00.png\ntrain-red-01.png\n")
    with pytest.raises(InputError, match="--subset: reds: holds images of a single class"):
        tinyseed.evaluate("semi", model=MODEL, subset=[path], **settings)


def test_transfer_linear_chooses_by_the_sets_own_metric(settings, tmp_path):
    report = tinyseed.evaluate(
        "transfer", model=MODEL, metric="mean-per-class", l2=(0.01, 1000.0), out=tmp_path, **settings
    )
    (row,) = report.results
    assert (row["mode"], row["metric"], row["l2"]) == ("linear", "mean_per_class", 0.01)
    assert row["mean_per_class"] >= 90
    assert read(tmp_path, "transfer")["results"] == [row]


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
def test_auto_metric_goes_by_the_name(data, metric):
    given = {"model": MODEL, "train_data": (data,), "test_data": ("x",)}
    assert metric_for(TransferConfig(**given)) == metric
    assert metric_for(TransferConfig(metric="top1", **given)) == "top1"


@pytest.mark.parametrize("evaluation", ["linear", "transfer", "retention"])
def test_a_solver_that_did_not_converge_is_told(settings, evaluation, monkeypatch):
    def impatient(*arguments):
        return fit_logistic(*arguments, most_iterations=0)

    monkeypatch.setattr(probe, "fit_logistic", impatient)
    models = (
        {"student": MODEL, "teacher": MODEL, "quick": True} if evaluation == "retention" else {"model": MODEL}
    )
    report = tinyseed.evaluate(evaluation, **models, **settings)
    assert any("solver stopped before its gradient was below" in note for note in report.notes)


def test_transfer_fine_tunes_with_the_rate_that_validates_best(settings):
    given = {"model": MODEL, "mode": "finetune", "epochs": 2, "batch_size": 16, **settings}
    report = tinyseed.evaluate("transfer", lr=(1e-7, 1.0, 1e20), **given)
    (row,) = report.results
    assert row["lr"] == 1.0  # the first learns nothing, the last diverges
    alone = tinyseed.evaluate("transfer", lr=(1.0,), **given).results[0]
    assert alone["top1"] == row["top1"] >= 60
    assert "validation" not in alone
    with pytest.raises(RunError, match="diverged with every learning rate"):
        tinyseed.evaluate("transfer", lr=(1e20, 1e21), **given)


@pytest.fixture
def quick_cost(monkeypatch):
    honest = retention.cost
    monkeypatch.setattr(retention, "cost", lambda encoder, threads: honest(encoder, threads=threads, runs=2))
    monkeypatch.setattr("tinyseed.evaluation.cost.find_spec", lambda name: None)


def test_retention_is_complete_and_its_shares_are_right(settings, tmp_path, quick_cost, capsys):
    given = {"student": MODEL, "teacher": "random:resnet14t", "alone": "random:resnet10t", **settings}
    report = tinyseed.evaluate("retention", fraction=(0.25,), epochs=2, out=tmp_path, **given)
    rows = read(tmp_path, "retention")["results"]
    assert [row["role"] for row in rows] == ["random", "alone", "student", "teacher"]
    figures = {"knn_top1", "linear_top1", "semi_0.25_top1", "parameters", "gmacs", "latency_ms", "file_mb"}
    teacher = rows[-1]
    for row in rows:
        assert figures <= row.keys()
        assert row["of_teacher"].keys() == figures
        for name, share in row["of_teacher"].items():
            assert share == pytest.approx(100 * row[name] / teacher[name])
    assert set(teacher["of_teacher"].values()) == {100.0}
    assert rows[2]["parameters"] == sum(value.numel() for value in tinyseed_trunk().parameters())
    # A random student is its own random twin.
    assert rows[0]["knn_top1"] == rows[2]["knn_top1"]
    page = (tmp_path / "retention.md").read_text()
    shown = retention.table(report)
    for text in (page, shown):
        assert f"{rows[2]['of_teacher']['knn_top1']:.0f} % of the teacher's k-NN" in text
        assert "25 % labels" in text
        assert "multiply-adds" in text
    assert "| student | resnet10t |" in page
    assert (tmp_path / "semi-subset-0.25.txt").is_file()


def tinyseed_trunk() -> torch.nn.Module:
    from tinyseed.models.backbones import build_backbone

    return build_backbone("resnet10t", seed=0)


def test_retention_goes_on_after_a_stop(settings, monkeypatch, quick_cost):
    given = {"student": MODEL, "teacher": "random:resnet14t", "quick": True, **settings}
    honest, measured = retention.measure_linear, []

    def stops(*args, **more):
        measured.append(1)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return honest(*args, **more)

    monkeypatch.setattr(retention, "measure_linear", stops)
    with pytest.raises(KeyboardInterrupt):
        tinyseed.evaluate("retention", **given)
    report = tinyseed.evaluate("retention", **given)
    assert len(measured) == 4  # random once, student twice, teacher once
    assert all("semi" not in name for name in report.results[0])


def test_every_evaluation_is_found():
    for name in names().split(", "):
        found = find_evaluation(name)
        assert found.example.startswith(f"tinyseed evaluate {name} --")
    with pytest.raises(InputError, match="evaluation: magic: give knn, linear"):
        find_evaluation("magic")
