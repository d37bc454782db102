"""The driver, on an evaluation of a few lines; the catalog; what a stopped evaluation keeps."""

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest

import tinyseed
from tinyseed.errors import InputError
from tinyseed.evaluation import logistic
from tinyseed.evaluation.base import Interrupted, Measurement, Resume, Subject, merge
from tinyseed.evaluation.logistic import fit_logistic
from tinyseed.evaluation.report import show
from tinyseed.evaluation.run import evaluate
from tinyseed.evaluations import EVALUATIONS, find_evaluation
from tinyseed.signals import Stopped, StopRequest

from .example import SPEC, CentroidSettings

MODEL = "random:resnet10t"


def test_a_new_evaluation_is_a_file_of_a_few_lines(settings, tmp_path):
    report = evaluate(SPEC, CentroidSettings(model=MODEL, center=True, out=tmp_path, **settings))
    assert report is not None
    assert report.results[0]["top1"] >= 90
    assert json.loads((tmp_path / "evaluate-centroid.json").read_text())["results"] == list(report.results)
    page = (tmp_path / "evaluate-centroid.md").read_text()
    assert "tinyseed evaluate centroid --model random:resnet10t" in page
    assert "--center" in page
    assert "top-1 %" in show(SPEC, report)


def with_parts(*measures):
    """The example, but of two parts that are remembered."""

    def measure(encoder, splits, settings, resume):
        parts = [
            resume.remember(str(number), lambda part=part: part(resume))
            for number, part in enumerate(measures)
        ]
        return Measurement(tuple(part.row for part in parts))

    return dataclasses.replace(SPEC, measure=measure, stoppable=True)


def test_a_stopped_evaluation_returns_nothing_and_resumes(settings, tmp_path, monkeypatch):
    computed = []

    def first(resume):
        computed.append("first")
        return Measurement(({"part": 1},))

    def second(resume):
        if resume.stop():
            raise Interrupted
        computed.append("second")
        return Measurement(({"part": 2},))

    given = CentroidSettings(model=MODEL, out=tmp_path, **settings)
    spec = with_parts(first, second)
    with monkeypatch.context() as asked:
        asked.setattr(StopRequest, "asked", property(lambda _: True))
        asked.setattr(StopRequest, "at_once", nullcontext)  # the data are read before
        with pytest.raises(Stopped, match="the same command resumes it"):
            evaluate(spec, given)
    assert not list(tmp_path.iterdir())
    for _ in range(2):  # once finished, nothing is left over
        report = evaluate(with_parts(first, second), dataclasses.replace(given, workers=1))
        assert report.results == ({"part": 1}, {"part": 2})
    assert computed == ["first", "second", "first", "second"]


def test_what_an_evaluation_leaves_is_all_in_its_folder(settings, tmp_path):
    def measure(encoder, splits, settings, resume):
        return Measurement(({"top1": 1.0},), ("a note",), 3, {"list.txt": "a\nb\n"})

    spec = dataclasses.replace(
        SPEC,
        measure=measure,
        report=lambda report, data, settings: dataclasses.replace(report, versions={"all": "1"}),
        page=lambda report, settings: f"# {report.model}",
        page_names=("page.md",),
    )
    report = evaluate(spec, CentroidSettings(model=MODEL, out=tmp_path, **settings))
    assert report is not None
    assert report.notes == ("a note", "3 unreadable images left out")
    content = json.loads((tmp_path / "evaluate-centroid.json").read_text())
    assert content["versions"] == report.versions == {"all": "1"}
    assert (tmp_path / "list.txt").read_text() == "a\nb\n"
    for name in ("evaluate-centroid.md", "page.md"):
        assert (tmp_path / name).read_text() == f"# {MODEL}\n"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        evaluate(spec, CentroidSettings(model=MODEL, out=tmp_path / "file", **settings))


def test_a_note_on_some_models_begins_with_their_roles(small):
    roles = {"student": ("both", "one"), "teacher": ("both",)}
    measured = [
        (Subject(role, MODEL, small), Measurement(({"role": role},), notes, len(notes)))
        for role, notes in roles.items()
    ]
    merged = merge(measured)
    assert merged.notes == ("both", "student: one")
    assert merged.metrics == ({"role": "student"}, {"role": "teacher"})
    assert merged.unreadable == 2


@pytest.mark.parametrize("evaluation", ["linear", "transfer", "retention"])
def test_a_solver_that_did_not_converge_is_noted(settings, evaluation, quick, monkeypatch):
    def impatient(*given):
        return fit_logistic(*given, most_iterations=0)

    monkeypatch.setattr(logistic, "fit_logistic", impatient)
    models = (
        {"student": MODEL, "teacher": MODEL, "quick": True} if evaluation == "retention" else {"model": MODEL}
    )
    report = tinyseed.evaluate(evaluation, **models, **settings)
    assert any("solver stopped before its gradient was below" in note for note in report.notes)


def test_every_evaluation_is_found():
    names = [spec.name for spec in EVALUATIONS]
    assert names == ["knn", "linear", "semi", "transfer", "retention", "detect"]
    for spec in EVALUATIONS:
        assert find_evaluation(spec.name) is spec
        assert spec.example.startswith(f"tinyseed evaluate {spec.name} --")
    with pytest.raises(InputError, match="evaluation=magic: give one of knn, linear"):
        find_evaluation("magic")


def test_the_settings_of_all_evaluations_import_no_torch():
    """The command line reads the settings of an evaluation to build its help."""
    program = "import sys, tinyseed.evaluations; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_former_name_of_a_setting_still_works(settings):
    given = {"student": MODEL, "teacher": MODEL, "quick": True, "alone": "random:nonsense", **settings}
    with pytest.raises(InputError, match="baseline=nonsense: "):
        tinyseed.evaluate("retention", **given)


def test_a_stopped_evaluation_remembers_its_finished_parts():
    def of(top1):
        return Measurement(({"top1": top1},), ("a note",), 2, {"file": "text"})

    resume = Resume.of("test", 1)
    assert resume.remember("part", lambda: of(3.0)) == of(3.0)
    with pytest.raises(InputError, match=f"is being run by process {os.getpid()}"):
        Resume.of("test", 1).path("part")
    resume.close()
    resume = Resume.of("test", 1)
    assert resume.remember("part", lambda: of(4.0)) == of(3.0)
    assert Resume.of("test", 2).remember("part", lambda: of(5.0)) == of(5.0)
    resume.clear()
    assert resume.remember("part", lambda: of(6.0)) == of(6.0)
    resume.clear()
