"""Students that train together: each is what it would be alone, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tinyseed
from tinyseed import cli
from tinyseed.data.loader import TrainingViews
from tinyseed.engine import checkpoint
from tinyseed.engine import train as engine
from tinyseed.engine.runs import share_queues
from tinyseed.engine.train import train, train_students
from tinyseed.errors import InputError, RunError
from tinyseed.methods.seed import Seed, SeedSettings
from tinyseed.models.teacher import Teacher
from tinyseed.settings.base import flag
from tinyseed.settings.several import several
from tinyseed.signals import Stopped

STUDENTS = ("test_resnet", "test_efficientnet", "mobilenetv3_small_050")
TIMES = {"images_per_s", "data_wait", "minutes"}


def settings(photos: Path, out: Path, **changes) -> dict[str, SeedSettings]:
    """Three students: 3 epochs of 4 steps of 12 images in 2 micro-batches, a queue that wraps around."""
    given = {
        "data": (str(photos),),
        "out": out,
        "teacher": "test_resnet",
        "teacher_weights": "random",
        "epochs": 3,
        "batch_size": 12,
        "accumulate": 2,
        "image_size": 32,
        "queue_size": 32,
        "lr": 0.3,
        "workers": 0,
        "precision": "32",
        "log_every": 1,
        "evaluate_every": 1,
    } | changes
    students, grid = given.pop("students", STUDENTS), given.pop("grid", {})
    return several(SeedSettings, given, students, grid)


@pytest.fixture(scope="module", autouse=True)
def saved_after_each_epoch() -> Iterator[None]:
    """However long it takes beside these short epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyseed.engine.run.CHECKPOINT_SHARE", 1e9)
        yield


@pytest.fixture(scope="module", autouse=True)
def noise():
    """Losses that depend on the random generator, as with dropout."""
    real = Seed.step

    def step(self, forward, views, at):
        output = real(self, forward, views, at)
        return replace(output, loss=output.loss * (1 + torch.rand(())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Seed, "step", step)
        yield


@pytest.fixture(scope="module")
def alone(photos, tmp_path_factory, noise):
    """Each of the students by itself."""
    out = tmp_path_factory.mktemp("alone")
    for of_run in settings(photos, out).values():
        train(of_run, quiet=True)
    return out


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def states(out: Path) -> dict[str, str]:
    return {run["name"]: run["state"] for run in json.loads((out / "runs.json").read_text())["runs"]}


def tensors(state, prefix="") -> dict[str, torch.Tensor]:
    if torch.is_tensor(state):
        return {prefix: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {name: value for key, part in pairs for name, value in tensors(part, f"{prefix}.{key}").items()}


def assert_same(one: Path, other: Path, *names: str) -> None:
    """The same lines, weights, momenta and queues, to the last bit."""
    for name in names or STUDENTS:
        assert lines(one / name) == lines(other / name), name
        left, right = (
            tensors(torch.load(out / name / "checkpoints" / "last.ckpt", weights_only=True))
            for out in (one, other)
        )
        assert left.keys() == right.keys()
        assert {".method.buffer", ".method.next"} <= left.keys()
        assert all(torch.equal(value, right[key]) for key, value in left.items()), name
        models = [load_file(out / name / "student.safetensors") for out in (one, other)]
        assert models[0].keys() == models[1].keys()
        assert all(torch.equal(value, models[1][key]) for key, value in models[0].items()), name


def test_students_together_are_those_alone_with_one_decode_and_one_pass_of_the_teacher(
    photos, tmp_path, alone, monkeypatch, capsys
):
    calls = {"teacher": 0, "decoded": 0}
    batch, call, step = TrainingViews.batch, Teacher.__call__, engine.train_step
    shared_memory = set()

    def decoded(self, request):
        calls["decoded"] += 1
        return batch(self, request)

    def called(self, images):
        calls["teacher"] += 1
        return call(self, images)

    def stepping(runs, batches):
        before = calls["teacher"]
        outputs = step(runs, batches)
        assert calls["teacher"] == before + 2  # micro-batches
        shared_memory.add(len({run.method.queue.rows().data_ptr() for run in runs}))
        return outputs

    monkeypatch.setattr(TrainingViews, "batch", decoded)
    monkeypatch.setattr(Teacher, "__call__", called)
    monkeypatch.setattr(engine, "train_step", stepping)
    found = train_students(settings(photos, tmp_path / "runs"))
    assert_same(tmp_path / "runs", alone)
    assert calls["decoded"] == 24
    assert shared_memory == {1}
    assert list(found) == list(STUDENTS)
    for name in STUDENTS:
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        assert summary == found[name]
        before = json.loads((alone / name / "summary.json").read_text())
        assert {key: summary[key] for key in before if key not in TIMES} == {
            key: value for key, value in before.items() if key not in TIMES
        }
        config, single = (
            json.loads((out / name / "config.json").read_text()) for out in (tmp_path / "runs", alone)
        )
        assert config | {"out": ""} == single | {"out": ""}
    assert states(tmp_path / "runs") == dict.fromkeys(STUDENTS, "finished")
    told = capsys.readouterr().err
    assert f"SEED: 3 runs, {', '.join(STUDENTS)}" in told
    assert "test_resnet: epoch 3: " in told


def test_averages_and_optimizers_of_their_own_are_those_alone(photos, tmp_path):
    grid = {"ema": [0.6, 0.0], "clip_gradients": [0.001, None]}
    short = {"epochs": 2, "optimizer": "adamw", "lr": 0.01, "students": ("resnet10t",), "grid": grid}
    for of_run in settings(photos, tmp_path / "alone", **short).values():
        train(of_run, quiet=True)
    train_students(settings(photos, tmp_path / "runs", **short), quiet=True)
    names = [path.name for path in (tmp_path / "alone").iterdir()]
    assert len(names) == 4
    assert_same(tmp_path / "runs", tmp_path / "alone", *names)
    weights = [
        load_file(tmp_path / "runs" / name / "student.safetensors")["layer4.0.conv1.weight"] for name in names
    ]
    assert all(not torch.equal(one, other) for place, one in enumerate(weights) for other in weights[:place])


def test_bf16_is_the_same_too(photos, tmp_path):
    short = {"epochs": 1, "precision": "bf16", "students": STUDENTS[:2]}
    for of_run in settings(photos, tmp_path / "alone", **short).values():
        train(of_run, quiet=True)
    train_students(settings(photos, tmp_path / "runs", **short), quiet=True)
    assert_same(tmp_path / "runs", tmp_path / "alone", *STUDENTS[:2])


def breaking(name: str, step: int):
    """A step that breaks the weights of a run."""
    real = engine.train_step

    def breaks(runs, batches):
        for run in runs:
            if run.log.name == name and run.step == step:
                with torch.no_grad():
                    next(run.method.module.parameters()).fill_(float("nan"))
        return real(runs, batches)

    return breaks


def test_one_fails_and_the_others_go_on_and_it_can_be_resumed(photos, tmp_path, alone, monkeypatch, capsys):
    out, (first, second, third) = tmp_path / "runs", STUDENTS
    monkeypatch.setattr(engine, "train_step", breaking(second, 6))
    found = train_students(settings(photos, out))
    monkeypatch.undo()
    assert isinstance(found[second], RunError)
    assert "the loss became nan at step 7" in str(found[second])
    assert f"{second}: failed: the loss became nan" in capsys.readouterr().err
    assert states(out) == {first: "finished", second: "failed", third: "finished"}
    assert_same(out, alone, first, third)
    assert not (out / second / "summary.json").exists()
    before = (out / first / "summary.json").read_bytes()
    train_students(settings(photos, out, resume=True), quiet=True)
    assert (out / first / "summary.json").read_bytes() == before
    assert states(out) == dict.fromkeys(STUDENTS, "finished")
    assert_same(out, alone)
    with pytest.raises(InputError, match="these runs are finished"):
        train_students(settings(photos, out, resume=True), quiet=True)


def test_a_folder_that_cannot_be_written_to_ends_its_run_only(photos, tmp_path, alone, monkeypatch):
    real = checkpoint.save

    def full(content, path):
        if path.parent.parent.name == STUDENTS[0] and content.step == 8:
            raise RunError("No space left on device")
        real(content, path)

    monkeypatch.setattr(checkpoint, "save", full)
    found = train_students(settings(photos, tmp_path / "runs"), quiet=True)
    assert str(found[STUDENTS[0]]) == "No space left on device"
    assert_same(tmp_path / "runs", alone, *STUDENTS[1:])


def test_stopped_runs_resume_together_or_alone(photos, tmp_path, alone, monkeypatch):
    out, real = tmp_path / "runs", engine.train_step

    def stops(runs, batches):
        outputs = real(runs, batches)
        if runs[0].step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    monkeypatch.setattr(engine, "train_step", stops)
    with pytest.raises(Stopped, match="stopped at step 6 and saved") as stopped:
        train_students(settings(photos, out), quiet=True)
    assert stopped.value.exit_code == 143
    monkeypatch.setattr(engine, "train_step", real)
    assert states(out) == dict.fromkeys(STUDENTS, "stopped")
    with pytest.raises(InputError, match="holds other runs; resume them"):
        train_students(settings(photos, out), quiet=True)
    train(replace(settings(photos, out)[STUDENTS[2]], resume=True), quiet=True)
    train_students(settings(photos, out, resume=True), quiet=True)
    assert_same(out, alone)


@pytest.fixture
def apart(photos, tmp_path, monkeypatch):
    """Runs that were killed between two saves: the first is at step 8, the others are at step 4."""
    real, out = checkpoint.save, tmp_path / "runs"

    def dies(content, path):
        if path.parent.parent.name != STUDENTS[0] and content.step == 8:
            raise MemoryError
        real(content, path)

    monkeypatch.setattr(checkpoint, "save", dies)
    with pytest.raises(MemoryError):
        train_students(settings(photos, out), quiet=True)
    monkeypatch.setattr(checkpoint, "save", real)
    return out


def test_runs_at_different_steps_join_and_are_those_alone(photos, apart, alone):
    train_students(settings(photos, apart, resume=True), quiet=True)
    assert_same(apart, alone)


def test_where_those_behind_fail_the_others_go_on_from_their_own_step(photos, apart, alone, monkeypatch):
    given = settings(photos, apart, resume=True, students=STUDENTS[:2])
    monkeypatch.setattr(engine, "train_step", breaking(STUDENTS[1], 5))
    assert isinstance(train_students(given, quiet=True)[STUDENTS[1]], RunError)
    assert_same(apart, alone, STUDENTS[0])
    assert states(apart)[STUDENTS[2]] == "stopped"  # it was not given, and is as it was


def test_a_grid_has_a_run_for_each_combination(photos, tmp_path):
    grid = {"teacher_temperature": [0.01, 0.1], "queue_size": [16, 32]}
    found = train_students(settings(photos, tmp_path / "runs", students=["test_resnet"], grid=grid, epochs=1))
    assert list(found) == [
        f"teacher_temperature={temperature},queue_size={size}"
        for temperature in (0.01, 0.1)
        for size in (16, 32)
    ]
    losses = {name: metrics["loss"] for name, metrics in found.items()}
    assert len(set(losses.values())) == 4
    name = "teacher_temperature=0.1,queue_size=16"
    config = json.loads((tmp_path / "runs" / name / "config.json").read_text())
    assert (config["teacher_temperature"], config["queue_size"]) == (0.1, 16)
    entries = json.loads((tmp_path / "runs" / "runs.json").read_text())["runs"]
    assert entries[0]["settings"] == {
        "student": "test_resnet",
        "teacher_temperature": 0.01,
        "queue_size": 16,
    }
    alone = settings(photos, tmp_path / "alone", students=["test_resnet"], grid=grid, epochs=1)[name]
    train(alone, quiet=True)
    assert_same(tmp_path / "runs", tmp_path / "alone", name)


def test_runs_of_different_lengths_end_one_after_the_other(photos, tmp_path, alone):
    runs = settings(photos, tmp_path / "runs", students=STUDENTS[:1], grid={"epochs": [1, 3]})
    found = train_students(runs, quiet=True)
    assert [metrics["steps"] for metrics in found.values()] == [4, 12]
    shutil.copytree(alone / STUDENTS[0], tmp_path / "alone" / "epochs=3")
    assert_same(tmp_path / "runs", tmp_path / "alone", "epochs=3")


def test_minutes_end_all_runs(photos, tmp_path):
    found = train_students(
        settings(photos, tmp_path, max_minutes=0.03, epochs=10_000, students=STUDENTS[:2]), quiet=True
    )
    assert len({metrics["steps"] for metrics in found.values()}) == 1


def test_queues_with_other_rows_are_not_shared(photos, tmp_path):
    from tinyseed.objectives.queue import Queue

    rows = torch.randn(20, 3)
    queues = [Queue(8, 3) for _ in range(3)]
    queues[0].push(rows[:6])
    queues[1].push(rows[:6])
    queues[2].push(rows[1:7])
    assert queues[1].share(queues[0])
    assert not queues[2].share(queues[0])
    assert not Queue(9, 3).share(queues[0])
    for queue in queues[:2]:
        queue.push(rows[6:11])
        queue.push(rows[11:13])
    expected = Queue(8, 3)
    expected.push(rows[:6])
    expected.push(rows[6:11])
    expected.push(rows[11:13])
    for queue in queues[:2]:
        assert all(
            torch.equal(value, queue.state_dict()[key]) for key, value in expected.state_dict().items()
        )
    assert share_queues([]) is None


SMALL = {"epochs": 1, "batch_size": 12, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}
GIVEN = {"teacher": "test_resnet", "teacher_weights": "random", **SMALL}
COMMAND = ["distill", *(word for name, value in GIVEN.items() for word in (flag(name), str(value)))]


def test_the_command_prints_a_table_and_ends_with_1_where_one_has_failed(
    photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(engine, "train_step", breaking("test_efficientnet", 2))
    out = tmp_path / "runs"
    given = [
        *COMMAND,
        "--data",
        str(photos),
        "--out",
        str(out),
        "--student",
        "test_resnet",
        "test_efficientnet",
    ]
    assert cli.run(given) == 1
    told = capsys.readouterr()
    header, first, second = told.out.splitlines()
    assert header.split() == ["run", "parameters", "k-NN", "agreement", "rank", "folder"]
    assert first.split()[:3] == ["test_resnet", "0.4", "M"]
    assert first.endswith(str(out / "test_resnet"))
    assert second.endswith(f"failed ({out / 'test_efficientnet'})")
    assert told.err.splitlines()[-1].startswith(
        "tinyseed: error: test_efficientnet: the loss became nan at step 3"
    )
    assert "try a lower --lr" in told.err.splitlines()[-1]


def test_python_returns_the_metrics_by_name(photos, tmp_path, monkeypatch):
    given = {"data": photos, **GIVEN}
    grid = {"projector": ["mlp", "linear"]}
    found = tinyseed.distill(**given, student=["test_resnet"], grid=grid, out=tmp_path / "grid")
    assert list(found) == ["projector=mlp", "projector=linear"]
    assert tinyseed.load(tmp_path / "grid" / "projector=mlp") is not None
    monkeypatch.setattr(engine, "train_step", breaking("test_resnet", 0))
    with pytest.raises(RunError, match=r"^test_resnet: the loss became nan at step 1"):
        tinyseed.distill(**given, student=["test_resnet", "test_efficientnet"], out=tmp_path / "two")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--student", "test_resnet", "resnet1888"], "--student: resnet1888: "),
        (
            ["--student", "test_resnet", "test_resnet"],
            "--student: test_resnet test_resnet: give each value once",
        ),
        (["--student", "a/b", "a-b"], "--student: a-b: two runs would have the same folder"),
        (["--grid", "lr"], "--grid: lr: give NAME=VALUE,VALUE"),
        (["--grid", "lr=0.1,0.1"], "--grid: lr=0.1,0.1: give each value once"),
        (["--grid", "lr="], "--grid: lr=: '': give a number"),
        (["--grid", "lr=0.1,high"], "--grid: lr=0.1,high: high: give a number"),
        (["--grid", "lr=0.1", "lr=1"], "--grid: lr=1: give all values of --lr at once"),
        (["--grid", "lr=0.1,-1"], "--lr: -1.0: give a number above 0"),
        (["--grid", "learning_rate=1"], "--grid: learning_rate: there is no such setting"),
        (
            ["--grid", "teacher-temp=1"],
            "--grid: teacher_temp: there is no such setting; did you mean teacher_temp",
        ),
        (
            ["--grid", "batch-size=8,16"],
            "--grid: batch_size: is the same for all runs of a grid, give --batch-size",
        ),
        (["--grid", "seed=0,1"], "--grid: seed: decides the views and their order"),
        (["--grid", "small_stem=true,false"], "--grid: small_stem: decides the teacher's random weights too"),
        (["--grid", "small_stem=yes"], "--grid: small_stem=yes: yes: give true or false"),
        (["--grids", "lr=1"], "--grids: lr=1: unknown flag; did you mean --grid?"),
        (["--grid", "projector=mlp,conv"], "--grid: projector=mlp,conv: conv: give mlp or linear"),
        (
            ["--student", "test_resnet", "test_vit", "--student-weights", "a.pth"],
            "--student-weights: a.pth: fits one architecture; give one --student, and others in runs",
        ),
        (
            ["--grid", "student_weights=a.pth,b.pth", "student=test_resnet,test_vit"],
            "--student-weights: a.pth: fits one architecture",
        ),
        (["--precision", "16", "--student", "test_resnet", "test_vit"], "--precision: 16: float16 "),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_written(photos, tmp_path, capsys, more, told):
    out = tmp_path / "runs"
    student = [] if "--student" in more else ["--student", "test_resnet"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*COMMAND, "--data", str(photos), "--out", str(out), *student, *more])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tinyseed: error: {told}")
    assert not out.exists()


def test_other_folders_are_left_alone(photos, tmp_path, alone):
    with pytest.raises(InputError, match="holds a single run"):
        train_students(settings(photos, alone / STUDENTS[0]), quiet=True)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="is a folder with other files"):
        train_students(settings(photos, tmp_path), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_students_that_look_at_other_views_are_refused(photos, tmp_path, monkeypatch):
    real = Seed.views
    monkeypatch.setattr(
        Seed, "views", lambda self, size: real(self, size + len(self.encoder.backbone.state_dict()))
    )
    with pytest.raises(InputError, match="look at different views"):
        train_students(settings(photos, tmp_path / "runs"), quiet=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_processes_train_two_students(photos, tmp_path):
    """Networks without batch norm, so that the losses are those of one process."""
    students, losses = ("convnext_atto", "test_convnext"), {}
    for processes in ("1", "2"):
        out = tmp_path / processes
        given = [*COMMAND, "--data", str(photos), "--out", str(out), "--devices", processes]
        done = subprocess.run(
            [sys.executable, "-m", "tinyseed.cli", *given, "--student", *students],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 3  # one table
        losses[processes] = [
            line["loss"] for name in students for line in lines(out / name) if "loss" in line
        ]
        assert states(out) == dict.fromkeys(students, "finished")
    assert len(losses["1"]) == 8
    assert losses["2"] == pytest.approx(losses["1"], rel=1e-5, abs=1e-6)
