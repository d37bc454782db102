"""`evaluate retention` as a user runs it."""

import dataclasses
import json

import pytest
import torch

import tinyseed
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.evaluation import linear, retention
from tinyseed.evaluation.report import show
from tinyseed.evaluation.retention import RetentionSettings
from tinyseed.models.encoder import Encoder, build_projector

MODEL = "random:resnet10t"


def test_retention_is_complete_and_its_shares_are_right(settings, tmp_path, quick):
    given = {"student": MODEL, "teacher": "random:resnet14t", "baseline": "random:resnet10t", **settings}
    report = tinyseed.evaluate("retention", fraction=(0.25,), epochs=2, out=tmp_path, **given)
    rows = json.loads((tmp_path / "evaluate-retention.json").read_text())["results"]
    assert [row["role"] for row in rows] == ["random", "alone", "student", "teacher"]
    metrics = {"knn_top1", "linear_top1", "semi_0.25_top1", "parameters", "gmacs", "latency_ms", "file_mb"}
    teacher = rows[-1]
    for row in rows:
        assert metrics <= row.keys()
        assert row["of_teacher"].keys() == metrics
        for name, share in row["of_teacher"].items():
            assert share == pytest.approx(100 * row[name] / teacher[name])
    assert set(teacher["of_teacher"].values()) == {100.0}
    assert rows[2]["parameters"] == sum(value.numel() for value in fresh_backbone().parameters())
    # A random student is its own random init.
    assert rows[0]["knn_top1"] == rows[2]["knn_top1"]
    page = (tmp_path / "retention.md").read_text()
    shown = show(retention.SPEC, report)
    for text in (page, shown):
        assert f"{rows[2]['of_teacher']['knn_top1']:.0f} % of the teacher's k-NN" in text
        assert "25 % labels" in text
        assert "multiply-adds" in text
    assert "| student | resnet10t |" in page
    assert (tmp_path / "semi-subset-0.25.txt").is_file()


def fresh_backbone() -> torch.nn.Module:
    from tinyseed.models.backbones import build_backbone

    return build_backbone("resnet10t", seed=0)


def test_retention_resumes_after_a_stop(settings, monkeypatch, quick):
    given = {"student": MODEL, "teacher": "random:resnet14t", "quick": True, **settings}
    honest, measured = linear.measure_probe, []

    def stops(*given, **more):
        measured.append(1)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return honest(*given, **more)

    monkeypatch.setattr(linear, "measure_probe", stops)
    with pytest.raises(KeyboardInterrupt):
        tinyseed.evaluate("retention", **given)
    report = tinyseed.evaluate("retention", **given)
    assert len(measured) == 4  # random once, student twice, teacher once
    assert all("semi" not in name for name in report.results[0])


def test_heads_are_compared_where_they_are_asked_for(settings, small, tmp_path, quick):
    """Random init gets a head as the student has it, with fresh weights."""
    for name, width in (("student", 8), ("teacher", 16)):
        save_encoder(
            tmp_path / name, Encoder(small.backbone, build_projector("mlp", small.width, width, seed=4))
        )
    models = {"student": tmp_path / "student", "teacher": tmp_path / "teacher", "quick": True}
    head, backbone = (
        tinyseed.evaluate("retention", model_output=output, **models, **settings)
        for output in ("head", "backbone")
    )
    for of_head, of_backbone in zip(head.results, backbone.results, strict=True):
        assert of_head["parameters"] > of_backbone["parameters"]
    random, student = head.results[:2]
    assert random["parameters"] == student["parameters"]
    given = RetentionSettings(
        **{name: (v if name == "quick" else str(v)) for name, v in models.items()}, **settings
    )
    subjects = retention.subjects(dataclasses.replace(given, model_output="head"))
    digests = {subject.digest for subject in subjects}
    assert [subject.encoder.width for subject in subjects] == [8, 8, 16]
    assert len(digests) == 3
