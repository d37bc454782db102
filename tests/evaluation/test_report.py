"""Reports say how to repeat them; tables line up."""

import dataclasses
import json
import shlex

from tinyseed.arguments import parse
from tinyseed.evaluation import knn
from tinyseed.evaluation.report import metrics_table, text_table
from tinyseed.evaluation.run import evaluate


def test_a_report_holds_all_that_repeats_it(settings, tmp_path):
    config = knn.KnnSettings(model="random:resnet10t", k=(3,), out=tmp_path / "a b", limit=20, **settings)
    report = evaluate(knn.SPEC, config)
    content = json.loads((tmp_path / "a b" / "evaluate-knn.json").read_text())
    assert content == json.loads(json.dumps(dataclasses.asdict(report)))
    assert content["settings"]["limit"] == 20
    assert len(content["data"]["train"]) == 24
    assert {"torch", "timm", "tinyseed", "python"} <= content["versions"].keys()
    page = (tmp_path / "a b" / "evaluate-knn.md").read_text()
    assert "| 3 | weighted |" in page
    (line,) = [line for line in page.splitlines() if line.startswith("    tinyseed evaluate knn")]
    words = shlex.split(line)[3:]
    assert parse(knn.KnnSettings, words, command="x", example="x", about="x") == config


def test_without_a_folder_nothing_is_written_and_a_note_says_so(settings):
    report = evaluate(knn.SPEC, knn.KnnSettings(model="random:resnet10t", k=(3,), limit=20, **settings))
    assert any("give `out`" in note for note in report.notes)


def test_tables_have_a_row_for_each_and_the_spread_beside_the_mean():
    head, cells = metrics_table([{"k": 1, "top1": 50.0, "top1_std": 1.25}, {"k": 20, "top1": 7.0}])
    assert head == ["k", "top-1 %"]
    assert cells == [["1", "50.0 ± 1.2"], ["20", "7.0"]]
    assert len({len(line) for line in text_table((head, cells))}) == 1
