"""Studies end in a table; what is finished is skipped, what was stopped goes on, and a failure costs its cell only."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tinyseed
from tinyseed import cli
from tinyseed.assets import clothing
from tinyseed.engine.runs import ViewsError
from tinyseed.engine.train import train_students
from tinyseed.errors import InputError, RunError
from tinyseed.methods.catalog import METHODS
from tinyseed.methods.seed import SEED, SeedSettings
from tinyseed.signals import Stopped
from tinyseed.studies import run as runner
from tinyseed.studies.base import Axis, Expected, Pretraining, Row, Study
from tinyseed.studies.results import Results, page, text
from tinyseed.studies.run import run_study
from tinyseed.studies.settings import StudySettings

COMMON = {
    "image_size": 32,
    "batch_size": 8,
    "queue_size": 16,
    "precision": "32",
    "workers": 0,
    "evaluate_every": 10_000,
    "lr": 0.1,
}
TEACHER = Pretraining("moco", "moco-v2", "test_resnet")
ROWS = (
    Row("random", "random init", None),
    Row("cold", "τ_T 0.01", "seed", {"teacher_temperature": 0.01}, expected=Expected(57.5, "a table")),
    Row("warm", "τ_T 0.1", "seed", {"teacher_temperature": 0.1}),
    Row("own", "own teacher", "seed", teacher=TEACHER),
)
STUDY = Study("test", "a test", "ours.", ROWS, COMMON, "test_resnet", "1epoch")


def given(photos: Path, out: Path, **changes) -> StudySettings:
    teacher = {"teacher": "random:test_resnet", "data": (str(photos),), "test_data": (str(photos),)}
    return StudySettings(**{**teacher, "out": out, **changes})


@pytest.fixture(scope="module", autouse=True)
def quick_probe():
    """The solver takes a second for each cell, and its L2 strengths do not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyseed.evaluation.logistic.L2_GRID", (0.1,))
        yield


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("study") / "out"
    return out, run_study(STUDY, given(photos, out, seeds=2), quiet=True)


def test_the_table_has_means_and_deviations_over_the_seeds(done):
    _, results = done
    assert [row["row"] for row in results.rows] == ["random", "cold", "warm", "own"]
    for row in results.rows:
        of_row = [cell for cell in results.cells if cell["row"] == row["row"]]
        assert [cell["seed"] for cell in of_row] == [0, 1]
        for name in ("knn_top1", "linear_top1"):
            values = np.array([cell[name] for cell in of_row])
            assert row[name] == pytest.approx(values.mean())
            assert row[f"{name}_std"] == pytest.approx(values.std(ddof=1))
    assert {teacher["name"] for teacher in results.teachers} == {"teacher", "teacher-moco"}
    assert not results.failed
    assert "1 epochs over the same images for each cell" in results.cost


def test_each_cell_is_measured_as_the_evaluations_measure_it(done, photos):
    _, results = done
    cell = next(cell for cell in results.cells if cell["name"] == "warm,seed=1")
    for name, settings in (("knn", {"k": [10]}), ("linear", {})):
        data = {"train_data": photos, "test_data": photos, "out": Path(cell["folder"]) / "again"}
        report = tinyseed.evaluate(name, model=cell["folder"], **data, **settings)
        assert report.results[0]["top1"] == cell[f"{name}_top1"]
    assert cell["images"] == 48  # 6 steps of 8: 54 of 60 pictures are trained on
    assert cell["folder"].endswith("warm,seed=1")


def test_the_files_say_what_was_returned(done):
    out, results = done
    kept = json.loads((out / "results.json").read_text())
    assert kept["rows"] == json.loads(json.dumps(results.rows))
    assert (out / "results.md").read_text() == page(results, drawn=(out / "plot.svg").is_file())
    table = (out / "results.md").read_text()
    row = next(row for row in results.rows if row["row"] == "cold")
    shown = f"{row['knn_top1']:.1f} ± {row['knn_top1_std']:.1f}"
    assert f"| τ_T 0.01 | {shown} | " in table
    assert "| 57.5 |" in table
    assert "Published: a table." in table
    assert shown in text(results)
    assert "tinyseed recipes run test --data" in table
    assert not [path for path in out.iterdir() if path.name.endswith(".unfinished")]


def test_random_inits_of_two_seeds_differ_and_are_those_that_training_begins_with(done):
    _, results = done
    random = [tinyseed.load(cell["folder"]).backbone for cell in results.cells if cell["row"] == "random"]
    first, second = (next(network.parameters()) for network in random)
    assert not (first == second).all()
    trained = tinyseed.load(next(c["folder"] for c in results.cells if c["name"] == "cold,seed=0"))
    assert next(trained.backbone.parameters()).shape == first.shape


def test_what_is_finished_is_neither_trained_nor_measured_again(done, photos, monkeypatch):
    out, results = done

    def never(*_, **__):
        raise AssertionError("this was done before")

    for name in ("train", "train_students", "evaluate"):
        monkeypatch.setattr(runner, name, never)
    again = run_study(STUDY, given(photos, out, seeds=2), quiet=True)
    assert (again.rows, again.cells) == (results.rows, results.cells)
    fewer = run_study(STUDY, given(photos, out, rows=("cold",)), quiet=True)
    assert [row["seeds"] for row in fewer.rows] == [1]


def test_a_stopped_study_has_what_it_has_and_the_same_call_goes_on(photos, tmp_path, done, monkeypatch):
    _, expected = done
    calls = []

    def stopping(settings, **how):
        calls.append(list(settings))
        if len(calls) == 2:
            raise Stopped(15, "stopped at step 3")
        return train_students(settings, **how)

    monkeypatch.setattr(runner, "train_students", stopping)
    settings = given(photos, tmp_path / "out", seeds=2)
    with pytest.raises(Stopped, match="the same command resumes"):
        run_study(STUDY, settings, quiet=True)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["row"]: row["seeds"] for row in kept["rows"]} == {"random": 1, "cold": 1, "warm": 1, "own": 0}
    results = run_study(STUDY, settings, quiet=True)
    assert calls[0] == ["cold,seed=0", "warm,seed=0"]
    assert calls[2:] == [["own,seed=0"], ["cold,seed=1", "warm,seed=1"], ["own,seed=1"]]
    metrics = ("knn_top1", "knn_top1_std", "linear_top1", "seeds")
    assert [{name: row[name] for name in metrics} for row in results.rows] == [
        {name: row[name] for name in metrics} for row in expected.rows
    ]


@dataclass(frozen=True, kw_only=True)
class OtherSettings(SeedSettings):
    """Of a second method with a teacher."""


@pytest.fixture
def other_method(monkeypatch):
    other = replace(SEED, name="other", settings=OtherSettings)
    monkeypatch.setattr("tinyseed.methods.catalog.METHODS", (*METHODS, other))


@pytest.mark.usefixtures("other_method")
@pytest.mark.parametrize("same_views", [True, False])
def test_methods_with_the_same_views_train_together_and_others_after_each_other(
    photos, tmp_path, monkeypatch, same_views
):
    calls = []

    def noting(settings, **how):
        calls.append(list(settings))
        if not same_views and len({type(of_run) for of_run in settings.values()}) > 1:
            raise ViewsError(tmp_path, "other views", argument="out")
        return train_students(settings, **how)

    monkeypatch.setattr(runner, "train_students", noting)
    rows = (Row("one", "one", "seed"), Row("two", "two", "other"))
    study = Study("test", "a test", "ours.", rows, COMMON, "test_resnet", "1epoch")
    results = run_study(study, given(photos, tmp_path / "out"), quiet=True)
    together = ["one,seed=0", "two,seed=0"]
    assert calls == ([together] if same_views else [together, ["one,seed=0"], ["two,seed=0"]])
    assert not results.failed
    first, second = results.rows  # the same arithmetic under two names
    assert (first["knn_top1"], first["linear_top1"]) == (second["knn_top1"], second["linear_top1"])


def test_a_cell_that_fails_costs_only_itself_and_is_tried_again(photos, tmp_path, done, monkeypatch):
    _, expected = done
    monkeypatch.setattr(
        runner,
        "train_students",
        lambda settings, **how: {
            **train_students({name: of for name, of in settings.items() if "warm" not in name}, **how),
            **{name: RunError("the loss became nan") for name in settings if "warm" in name},
        },
    )
    settings = given(photos, tmp_path / "out", rows=("random", "cold", "warm"))
    results = run_study(STUDY, settings, quiet=True)
    assert results.failed == {"warm,seed=0": "the loss became nan"}
    assert {row["row"]: row["seeds"] for row in results.rows} == {"random": 1, "cold": 1, "warm": 0}
    assert "warm,seed=0: failed: the loss became nan" in (tmp_path / "out" / "results.md").read_text()
    monkeypatch.undo()
    monkeypatch.setattr("tinyseed.evaluation.logistic.L2_GRID", (0.1,))
    results = run_study(STUDY, settings, quiet=True)
    assert not results.failed
    warm = next(row for row in results.rows if row["row"] == "warm")
    assert warm["knn_top1"] == next(
        cell["knn_top1"] for cell in expected.cells if cell["name"] == "warm,seed=0"
    )


def test_a_teacher_that_fails_fails_its_rows_only(photos, tmp_path, monkeypatch):
    def failing(settings, **_):
        raise RunError("out of luck")

    monkeypatch.setattr(runner, "train", failing)
    results = run_study(STUDY, given(photos, tmp_path / "out", rows=("cold", "own")), quiet=True)
    assert results.failed == {
        "teacher-moco": "out of luck",
        "own,seed=0": "its teacher failed: out of luck",
    }
    assert [row["seeds"] for row in results.rows] == [1, 0]


def test_tuning_takes_what_is_best_on_held_out_images_and_its_run_is_the_first_seeds(
    photos, tmp_path, monkeypatch
):
    trained = []
    real = runner.Runner._train

    def noting(self, cells):
        trained.extend(cell.name for cell in cells)
        real(self, cells)

    monkeypatch.setattr(runner.Runner, "_train", noting)
    monkeypatch.setattr(
        runner.Runner,
        "_held_out",
        lambda _, cell: (
            {"mlp": 2.0, "linear": 3.0}.get(cell.chosen.get("projector"), 0.0)
            + {0.1: 0.0, 0.5: 1.0}[cell.chosen["lr"]]
        ),
    )
    row = Row(
        "warm", "warm", "seed", {"teacher_temperature": 0.1}, own=("projector", ("mlp", "linear", "none"))
    )
    study = Study("test", "a test", "ours.", (row,), COMMON, "test_resnet", "1epoch")
    results = run_study(study, given(photos, tmp_path / "out", tune=("lr=0.1,0.5",)), quiet=True)
    assert trained == [
        "warm,lr=0.1,seed=0",
        "warm,lr=0.5,seed=0",
        "warm,lr=0.5,projector=mlp,seed=0",
        "warm,lr=0.5,projector=linear,seed=0",
    ]
    assert [cell["name"] for cell in results.cells] == ["warm,lr=0.5,projector=linear,seed=0"]
    assert results.rows[0]["chosen"] == {"lr": 0.5, "projector": "linear"}
    assert any("lr 0.5, projector linear, chosen on held-out" in note for note in results.notes)


def test_a_folder_of_another_study_or_with_other_settings_is_refused(done, photos, tmp_path):
    out, _ = done
    with pytest.raises(InputError, match=r"budget=2epochs: the study in .* was begun with the default"):
        run_study(STUDY, given(photos, out, budget="2epochs"), quiet=True)
    with pytest.raises(InputError, match="holds the study test; give another folder"):
        run_study(Study("b", "", "", ROWS, COMMON, "test_resnet", "1epoch"), given(photos, out), quiet=True)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match=r"^out=.*: holds other files; give a new folder"):
        run_study(STUDY, given(photos, tmp_path), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_images_without_labels_and_teachers_that_are_not_there_are_refused(photos, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(photos / "disc", flat)
    with pytest.raises(InputError, match=r"^data=.*: has no labels"):
        run_study(STUDY, given(flat, tmp_path / "out"), quiet=True)
    labeled = {"train_data": (str(photos),), "test_data": (str(photos),)}
    with pytest.raises(InputError, match=r"^tune=lr=0.1: rows are tuned by k-NN"):
        run_study(STUDY, given(flat, tmp_path / "out", tune=("lr=0.1",), **labeled), quiet=True)
    with pytest.raises(InputError, match=r"^teacher=no/such: "):
        run_study(STUDY, given(photos, tmp_path / "out", teacher="no/such", rows=("cold",)), quiet=True)
    with pytest.raises(InputError, match=r"^student=no_such_net: "):
        run_study(STUDY, given(photos, tmp_path / "two", student="no_such_net", rows=("cold",)), quiet=True)


def typed(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    shown = capsys.readouterr()
    return int(caught.value.code or 0), shown.out, shown.err


def test_a_dry_run_lists_the_cells_and_writes_nothing(capsys, photos, tmp_path):
    flags = ("--data", str(photos), "--test-data", str(photos), "--out", str(tmp_path / "out"))
    code, out, _ = typed(
        capsys, "recipes", "run", "paper-ssl", *flags, "--seeds", "2", "--budget", "3min", "--dry-run"
    )
    assert code == 0
    assert "teacher-simclr-resnet18-x2  (6 min)" in out
    assert "swav-x1,seed=1  (3 min)" in out
    assert "12 cells in 12 trainings; 18 of 18 runs left; 1 h 03 min of training" in out
    assert not (tmp_path / "out").exists()
    code, out, _ = typed(
        capsys, "recipes", "run", "paper-temperature-imagenet", *flags, "--teacher", "t", "--dry-run"
    )
    assert "1,200 epochs" in out or "1,400 epochs" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("paper-table",), "study: paper-table: unknown study; give one of paper-strategies"),
        (("paper-ssl",), "--data: missing: give it, as in: tinyseed recipes run"),
        (
            ("paper-ssl", "--data", "x", "--test-data", "x", "--out", "o", "--budget", "0min"),
            "--budget: 0min: give",
        ),
        (("paper-ssl", "--data", "/nowhere", "--test-data", "x", "--out", "o"), "--data: /nowhere: "),
        (
            ("paper-epochs", "--data", "x", "--test-data", "x", "--out", "o"),
            "--teacher: missing: give the network",
        ),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(capsys, "recipes", "run", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"tinyseed: error: {told}")
    assert list(tmp_path.iterdir()) == []


def test_studies_are_listed_and_shown(capsys):
    _, out, _ = typed(capsys, "recipes")
    assert "paper-strategies  (tinyseed recipes run)" in out
    _, out, _ = typed(capsys, "recipes", "paper-strategies-imagenet")
    assert out.startswith("tinyseed recipes run paper-strategies-imagenet --data train/ ")
    assert "57.6 % top-1: SEED table 1" in out
    code, out, _ = typed(capsys, "recipes", "run", "paper-ssl", "--help")
    assert (code, "--teacher-budget" in out) == (0, True)


@pytest.fixture
def few_clothes(tmp_path) -> dict[str, str]:
    """Some of the bundled photos: 96 to train on and 96 to measure on."""
    for split in ("train", "test"):
        table = pq.read_table(clothing(split))
        step = len(table) // 96
        pq.write_table(table.take(np.arange(96) * step), tmp_path / f"{split}.parquet")
    return {split: str(tmp_path / f"{split}.parquet") for split in ("train", "test")}


def test_a_study_of_the_paper_on_the_bundled_photos(capsys, few_clothes, tmp_path):
    out = tmp_path / "out"
    code, shown, _ = typed(
        capsys,
        *(
            "recipes",
            "run",
            "paper-temperature",
            "--data",
            few_clothes["train"],
            "--test-data",
            few_clothes["test"],
        ),
        *(
            "--out",
            str(out),
            "--teacher",
            "tinyseed/clothing-resnet18",
            "--budget",
            "1epoch",
            "--rows",
            "t-0.1",
        ),
        *("t-0.01", "--set", "image_size=32", "batch_size=16", "queue_size=32", "precision=32", "workers=0"),
    )
    assert code == 0
    assert "paper-temperature: The teacher's temperature" in shown
    results = json.loads((out / "results.json").read_text())
    assert [row["row"] for row in results["rows"]] == ["t-0.1", "t-0.01"]
    assert all(0 < row["linear_top1"] < 100 for row in results["rows"])
    assert results["teachers"][0]["model"] == "tinyseed/clothing-resnet18"
    together = [path for path in (out / "runs").iterdir() if path.name.startswith("together-")]
    assert {path.name for path in together[0].iterdir()} >= {"t-0.1,seed=0", "t-0.01,seed=0", "runs.json"}


def test_an_axis_over_teachers_takes_their_size_from_the_runs(done):
    _, results = done
    assert Axis("size", "parameters_teacher").metric in results.rows[1]
    assert "parameters_teacher" not in results.rows[0]
