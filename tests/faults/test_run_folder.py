"""A run's folder after kills, lost files, a second process, and parts that are not what the run began with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import tinyseed
from tinyseed.engine import checkpoint
from tinyseed.engine import runs as engine
from tinyseed.engine.run_folder import Quarantine, RunFolder
from tinyseed.engine.train import train
from tinyseed.engine.usable_teacher import IMAGES_ALIKE, require_usable
from tinyseed.errors import InputError, RunError
from tinyseed.files import append_line, write_checkpoint
from tinyseed.finite import first_non_finite
from tinyseed.locks import InUseError, locked, refuse_held
from tinyseed.methods.seed import Seed, SeedSettings

pytestmark = pytest.mark.usefixtures("one_thread")
NAN = float("nan")


def settings(photos: Path, out: Path, **changes) -> SeedSettings:
    """Three epochs of five steps, with held-out images of their own."""
    small = {"epochs": 2, "batch_size": 12, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}
    networks = {"teacher": "resnet10t", "teacher_weights": "random", "student": "test_resnet"}
    small["evaluate_every"] = 1
    return SeedSettings(data=(str(photos),), out=out, **networks | small | changes)


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Path:
    """An unbroken run."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(settings(photos, out), quiet=True)
    return out


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it, to break."""
    return shutil.copytree(finished, tmp_path / "run")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_times(metrics: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in line.items() if name not in ("images_per_s", "data_wait")}
        for line in metrics
    ]


# --- numbers that are not finite


@pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_first_tensor_that_is_not_finite_is_named(value, dtype):
    largest = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)  # whose sum and norm would overflow
    state = {"a": largest, "n": torch.arange(3), "empty": torch.empty(0), "list": [{"b": largest.clone()}]}
    assert first_non_finite(state) is None
    state["list"][0]["b"][1] = value
    assert first_non_finite(state) == "list.0.b"


def test_a_checkpoint_that_is_not_finite_does_not_replace_the_last_one(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"w": torch.ones(2)})
    with pytest.raises(RunError, match=r"state\.w is not finite"):
        write_checkpoint(path, {"state": {"w": torch.tensor([1.0, NAN])}})
    assert torch.load(path)["w"].tolist() == [1, 1]


def broken_weight(run):
    next(run.method.module.parameters()).data[0] = NAN


def broken_statistic(run):
    next(value for name, value in run.method.module.named_buffers() if "running_var" in name).fill_(NAN)


def broken_momentum(run):
    next(iter(run.learner.optimizer.state.values()))["momentum_buffer"].fill_(float("inf"))


def broken_queue(run):
    run.method.queue.rows()[0] = NAN


@pytest.mark.parametrize(
    "breaks",
    [
        broken_statistic,
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (broken_weight, broken_momentum, broken_queue)
        ),
    ],
)
def test_whatever_breaks_under_a_finite_loss_the_run_goes_on_from_the_last_good_checkpoint(
    photos, tmp_path, monkeypatch, finished, breaks
):
    """The state breaks after the update of the last step of the second epoch, whose loss is finite."""
    real = Seed.advance

    def breaking(self, outputs):
        real(self, outputs)
        breaking.steps += 1
        if breaking.steps == 8:
            breaks(breaking.run)

    breaking.steps = 0
    init = engine.Runs.batches

    def batches(self):
        breaking.run = self.all[0]
        return init(self)

    monkeypatch.setattr(Seed, "advance", breaking)
    monkeypatch.setattr(engine.Runs, "batches", batches)
    out = tmp_path / "run"
    with pytest.raises(RunError, match=r"is not finite after step 8; the last good checkpoint is .*`resume`"):
        train(settings(photos, out), quiet=True)
    monkeypatch.undo()
    last = checkpoint.load(out / "checkpoints" / "last.ckpt")
    assert last.step == 4
    assert first_non_finite(vars(last)) is None
    assert not (out / "student.safetensors").exists()
    train(settings(photos, out, resume=True), quiet=True)
    assert without_times(lines(out)) == without_times(lines(finished))


def test_a_checkpoint_that_an_earlier_version_has_poisoned_is_refused(photos, run):
    (run / "summary.json").unlink()
    content = torch.load(run / "checkpoints/last.ckpt")
    next(value for value in content["module"].values() if value.is_floating_point())[0] = NAN
    torch.save(content, run / "checkpoints/last.ckpt")
    with pytest.raises(InputError, match=r"last\.ckpt: module.* is not finite; give another `out`"):
        train(settings(photos, run, resume=True), quiet=True)


# --- two processes


HOLD = """
import sys, time
from pathlib import Path
from tinyseed.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_with_the_first_ones_pid_until_it_dies(photos, tmp_path, holder):
    out = tmp_path / "run"
    for resume in (False, True):
        with pytest.raises(InputError, match=f"out=.*is being written to by process {holder.pid};"):
            train(settings(photos, out, resume=resume), quiet=True)
    assert [path.name for path in out.iterdir()] == [".lock"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    refuse_held(out)
    train(settings(photos, out, epochs=1), quiet=True)  # the dead process' file is not in the way
    assert (out / "summary.json").exists()
    assert not (out / ".lock").exists()


def test_a_holder_on_another_machine_is_named(tmp_path, monkeypatch, holder):
    (tmp_path / "run/.lock").write_text(json.dumps({"pid": 7, "host": "node3"}))
    with pytest.raises(InUseError, match="process 7 on node3"), locked(tmp_path / "run"):
        pass


def test_one_process_does_not_hold_a_folder_twice_and_its_children_hold_nothing(tmp_path):
    with locked(tmp_path / "a/b/run") as lock:
        lock.require()
        with pytest.raises(InUseError, match=f"process {os.getpid()};"), locked(tmp_path / "a/b/run"):
            pass
        lock.require()
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    with locked(tmp_path / "a/b/run"):  # although a child lives that was forked while it was held
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not (tmp_path / "a").exists()  # made for it, and nothing was written


def test_without_locks_on_the_file_system_a_living_process_counts(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host = os.uname().nodename
    (tmp_path / ".lock").write_text(json.dumps({"pid": child.pid, "host": host}))
    with pytest.raises(InUseError, match=str(child.pid)), locked(tmp_path):
        pass
    child.communicate(b"\n")
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_refused_run_leaves_no_folder(photos, tmp_path):
    with pytest.raises(InputError):
        train(settings(photos, tmp_path / "a/run", teacher="no_such_net"), quiet=True)
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_two_evaluations_into_one_folder_are_refused(photos, tmp_path):
    data = {"train_data": photos, "test_data": photos, "k": [3], "image_size": 32}
    with locked(tmp_path / "out", ".evaluate-knn.lock"), pytest.raises(InputError, match=str(os.getpid())):
        tinyseed.evaluate("knn", model="random:resnet10t", out=tmp_path / "out", **data)
    tinyseed.evaluate("knn", model="random:resnet10t", out=tmp_path / "out", **data)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluate-knn.json", "evaluate-knn.md"}


# --- files that are lost or half written


@pytest.mark.parametrize(
    "lost",
    [
        "report.html",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("student.safetensors", "summary.json")),
    ],
)
def test_a_finished_run_gets_back_what_is_missing(photos, finished, run, lost):
    metrics = (run / "metrics.jsonl").read_bytes()
    (run / lost).unlink()
    train(settings(photos, run, resume=True), quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == metrics  # above all, nothing is evaluated twice
    assert json.loads((run / "summary.json").read_text()) == json.loads(
        (finished / "summary.json").read_text()
    )
    again, before = (load_file(folder / "student.safetensors") for folder in (run, finished))
    assert all(torch.equal(value, before[name]) for name, value in again.items())
    assert (run / lost).exists()


def test_a_finished_and_complete_run_is_refused(photos, run):
    with pytest.raises(InputError, match="this run is finished"):
        train(settings(photos, run, resume=True), quiet=True)


@pytest.mark.parametrize("content", [b"", b'{"step": 1, "lo', b'[1]\n\xff\xfe\n{}\n{"step": null}\n'])
def test_lost_metrics_come_back_from_the_checkpoint(photos, finished, run, content):
    (run / "metrics.jsonl").write_bytes(content)
    (run / "summary.json").unlink()
    summary = train(settings(photos, run, resume=True), quiet=True)
    whole = json.loads((finished / "summary.json").read_text())
    assert {k: v for k, v in summary.items() if k != "loss"} == {
        k: v for k, v in whole.items() if k != "loss"
    }
    assert lines(run) == [line for line in lines(finished) if "loss" not in line]


@pytest.mark.slow
def test_without_the_first_evaluation_nothing_is_said_of_the_untrained_network(photos, run):
    """As a checkpoint of an earlier version leaves it, which holds no evaluations."""
    content = torch.load(run / "checkpoints/last.ckpt")
    del content["evaluations"], content["made_from"]
    torch.save(content, run / "checkpoints/last.ckpt")
    kept = [line for line in lines(run) if line["step"] != 0]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (run / "summary.json").unlink()
    summary = train(settings(photos, run, resume=True), quiet=True)
    assert not [name for name in summary if name.endswith("_random")]
    assert "effective_rank" in summary


def test_metrics_without_need_are_not_torn_when_they_are_replaced(run, monkeypatch):
    before = (run / "metrics.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        RunFolder(run).forget_after(2)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_lost_lineage_and_quarantine_are_written_again(photos, run):
    for name in ("lineage.json", "quarantine.jsonl", "summary.json"):
        (run / name).unlink()
    train(settings(photos, run, resume=True), quiet=True)
    assert json.loads((run / "lineage.json").read_text())["data"]["images"] == 60
    assert (run / "quarantine.jsonl").read_text() == ""


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_config_that_cannot_be_read_is_named(photos, run, content):
    (run / "summary.json").unlink()
    (run / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json"):
        train(settings(photos, run, resume=True), quiet=True)


def test_a_checkpoint_without_its_config_is_not_other_files(photos, run):
    (run / "config.json").unlink()
    with pytest.raises(InputError, match=r"its config\.json is missing: restore it"):
        train(settings(photos, run, resume=True), quiet=True)


@pytest.mark.parametrize("entry", ["images", "module", "step"])
def test_a_checkpoint_without_an_entry_or_with_a_wrong_one_is_refused(photos, run, entry):
    path = run / "checkpoints/last.ckpt"
    content = torch.load(path)
    for changed in (
        {k: v for k, v in content.items() if k != entry},
        content | {entry: "x"},
        content | {"x": 1},
    ):
        torch.save(changed, path)
        with pytest.raises(InputError, match="is not a checkpoint of a run: its entry"):
            checkpoint.load(path)


def test_a_checkpoint_of_another_network_is_refused(photos, run):
    (run / "summary.json").unlink()
    content = torch.load(run / "checkpoints/last.ckpt")
    content["module"].popitem()
    torch.save(content, run / "checkpoints/last.ckpt")
    with pytest.raises(InputError, match="does not fit the run's networks"):
        train(settings(photos, run, resume=True), quiet=True)


def test_odd_lines_of_the_quarantine_are_left_out(run):
    (run / "quarantine.jsonl").write_bytes(b'{"x":1}\n[1]\n\xff\n{"name":"a.jpg"}\n{"na')
    assert Quarantine(RunFolder(run), 10).known == {"a.jpg"}


def test_what_kills_left_before_the_first_file_is_not_other_files(photos, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").write_text("")
    (out / ".config.json.x1.unfinished").write_text("{")
    train(settings(photos, out, epochs=1), quiet=True)


@pytest.mark.slow
def test_half_checkpoints_of_killed_processes_are_removed(photos, run):
    (run / "summary.json").unlink()
    (run / "checkpoints/.last.ckpt.abc.unfinished").write_bytes(b"half")
    train(settings(photos, run, resume=True), quiet=True)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_removed_while_it_is_written_to_ends_the_run(
    photos, tmp_path, monkeypatch, replaced
):
    real, out = Seed.advance, tmp_path / "run"

    def removing(self, outputs):
        real(self, outputs)
        if out.exists():
            shutil.rmtree(out)
            if replaced:
                out.mkdir()
                (out / ".lock").write_text("")
                (out / "metrics.jsonl").write_text("")

    monkeypatch.setattr(Seed, "advance", removing)
    with pytest.raises(RunError, match="was removed or replaced while it was being written to"):
        train(settings(photos, out), quiet=True)
    left = sorted(path.name for path in out.iterdir()) if out.exists() else []
    assert left == ([".lock", "metrics.jsonl"] if replaced else [])
    assert not replaced or not (out / "metrics.jsonl").read_text()


def test_a_line_that_cannot_be_written_whole_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    path.write_text("first\n")
    real = os.write

    def half(handle, content):
        if len(content) < 10:
            raise OSError(28, "No space left on device")
        return real(handle, content[: len(content) - 5])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(RunError, match="No space left on device"):
        append_line(path, "a second line")
    monkeypatch.undo()
    assert path.read_text() == "first\n"
    with pytest.raises(RunError, match="No such file"):
        append_line(tmp_path / "other", "line")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_an_end_by_minutes_at_an_end_of_an_epoch_is_evaluated_once(photos, tmp_path, monkeypatch):
    """Only after the evaluation the processes agree that the time is over."""
    real = engine.Runs.agree

    def over(self, runs, request):
        agreed = real(self, runs, request)
        self.shared.clock.elapsed = 61.0 if runs[0].step == 8 else 0.01
        return agreed

    monkeypatch.setattr(engine.Runs, "agree", over)
    train(settings(photos, tmp_path / "run", max_minutes=1.0, epochs=100), quiet=True)
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" not in line] == [0, 4, 8]


# --- other images, another teacher


@pytest.fixture
def stopped(photos, run, tmp_path):
    """A run that is to be resumed, of a copy of the photos."""
    data = shutil.copytree(photos, tmp_path / "data")
    (run / "summary.json").unlink()
    return data


def resume(data: Path, run: Path, **changes):
    return train(settings(data, run, resume=True, **changes), quiet=True)


def test_moved_copied_and_touched_images_are_the_same(stopped, run):
    for path in [*stopped.rglob("*"), stopped]:
        os.utime(path, (1, 1))
    assert resume(stopped, run)["steps"] == 8


@pytest.mark.parametrize("change", ["one", "order", "less"])
def test_other_images_are_refused_by_name(stopped, run, change):
    first, second = sorted((stopped / "disc").iterdir())[:2]
    match change:
        case "one":
            Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(second)
            message = rf"data=.*1 of 60 images compared .* such as .*{second.name}; give the images"
        case "order":
            first.rename(stopped / "disc/zz.jpg")
            message = "30 of 60 images compared"
        case "less":
            second.unlink()
            message = "has 59 images; the run began with 60"
    before = (run / "config.json").read_bytes()
    with pytest.raises(InputError, match=message):
        resume(stopped, run)
    assert (run / "config.json").read_bytes() == before


@pytest.mark.slow
def test_other_held_out_images_are_refused(photos, tmp_path, stopped):
    out, data = tmp_path / "own", str(stopped)
    train(settings(photos, out, epochs=1, val_data=(data,)), quiet=True)
    (out / "summary.json").unlink()
    victim = next((stopped / "square").iterdir())
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(victim)
    with pytest.raises(InputError, match=rf"val_data=.*1 of 60 images .*{victim.name}"):
        resume(photos, out, epochs=1, val_data=(data,))


@pytest.mark.slow
def test_another_teacher_is_refused_and_the_same_one_elsewhere_is_not(photos, tmp_path):
    weights = timm.create_model("resnet10t", num_classes=0).state_dict()
    torch.save(weights, tmp_path / "a.pth")
    out = tmp_path / "run"
    train(settings(photos, out, epochs=1, teacher=str(tmp_path / "a.pth"), teacher_weights=None), quiet=True)
    (out / "summary.json").unlink()
    torch.save(weights, tmp_path / "b.pth")
    again = {"epochs": 1, "teacher": str(tmp_path / "b.pth"), "teacher_weights": None}
    resume(photos, out, **again)
    (out / "summary.json").unlink()
    torch.save(weights | {"conv1.0.weight": weights["conv1.0.weight"] * 1.5}, tmp_path / "b.pth")
    with pytest.raises(InputError, match=r"teacher=.*b\.pth: its weights are not those"):
        resume(photos, out, **again)


# --- a teacher that tells nothing apart


def teacher_file(path: Path, change) -> str:
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    torch.save({name: change(name, value) for name, value in state.items()}, path)
    return str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, value: torch.zeros_like(value), "the teacher gives the same features for every image"),
        (lambda name, value: value * NAN if name == "conv1.0.weight" else value, "conv1.0.weight holds NaN"),
    ],
)
@pytest.mark.parametrize("held_out", [6, 2])
def test_a_teacher_that_tells_nothing_apart_is_refused_by_name(photos, tmp_path, change, message, held_out):
    data = photos
    if held_out == 2:  # too few to be measured: a few training images are looked at
        data = tmp_path / "few"
        (data / "disc").mkdir(parents=True)
        for path in sorted((photos / "disc").iterdir())[:20]:
            shutil.copy(path, data / "disc")
    teacher = teacher_file(tmp_path / "t.pth", change)
    given = settings(data, tmp_path / "run", teacher=teacher, teacher_weights=None, epochs=1)
    with pytest.raises(InputError, match=rf"teacher=.*t\.pth: .*{message}"):
        train(given, quiet=True)
    assert not (tmp_path / "run").exists()


def test_images_that_are_all_the_same_are_not_the_teachers_fault(photos, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for number in range(40):
        shutil.copy(photos / "disc/00.jpg", tmp_path / f"data/{number}.jpg")
    train(settings(tmp_path / "data", tmp_path / "run", epochs=1))
    assert IMAGES_ALIKE in capsys.readouterr().err


def test_a_head_that_collapses_is_told_from_a_backbone_that_does():
    features, rows = torch.rand(5, 4), torch.ones(5, 3)
    with pytest.raises(InputError, match=r"head gives the same embedding .* `teacher_output` backbone"):
        require_usable("t", features, rows, lambda: False)
    assert require_usable("t", features, rows, lambda: True) == IMAGES_ALIKE
    assert require_usable("t", features, rows + 1e-3 * torch.rand(5, 3), lambda: False) is None
    with pytest.raises(InputError, match="embedding of the images is not finite"):
        require_usable("t", features, rows * NAN, lambda: False)
