"""SEED's further settings in whole runs: each resumes bit-exactly, and is the same beside other students."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyseed.checkpoints import known
from tinyseed.data.loader import TrainingViews
from tinyseed.engine import train as engine
from tinyseed.engine.train import train, train_students
from tinyseed.errors import InputError
from tinyseed.methods.seed import SeedSettings
from tinyseed.models.teacher import Teacher
from tinyseed.settings.several import several
from tinyseed.signals import Stopped

pytestmark = pytest.mark.usefixtures("one_thread")

STUDENTS = ("test_resnet", "test_efficientnet")
TIMES = {"images_per_s", "data_wait"}
CASES: dict[str, dict[str, Any]] = {
    "crops": {"large_crops": 2, "small_crops": 2, "small_crop_weight": 0.5, "small_crop_scale": (0.2, 0.5)},
    "mixup": {"mixup": 0.4},
    "warm-up": {"queue_warmup": True, "small_crops": 1},
    "auto": {"teacher_temperature": "auto", "target_perplexity": 3.0},
}


def settings(photos: Path, out: Path, students=STUDENTS, **changes) -> dict[str, SeedSettings]:
    """3 epochs of 4 steps of 12 images in 2 micro-batches, queues that wrap around."""
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
    return several(SeedSettings, given, students, {})


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in found]


def state(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {part: saved[part] for part in ("module", "method")}


def assert_same(one: Path, other: Path) -> None:
    """The same lines, weights and queues, to the last bit."""
    assert lines(one) == lines(other)
    left, right = state(one), state(other)
    for part, values in left.items():
        assert values.keys() == right[part].keys()
        assert all(torch.equal(value, right[part][name]) for name, value in values.items()), part


def stop_at(step: int, monkeypatch) -> None:
    real = engine.train_step

    def stops(runs, batches):
        outputs = real(runs, batches)
        if runs[0].step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    monkeypatch.setattr(engine, "train_step", stops)


@pytest.mark.parametrize("case", CASES)
def test_students_together_are_those_alone_and_resume_bit_exactly(photos, tmp_path, case, monkeypatch):
    for of_run in settings(photos, tmp_path / "alone", **CASES[case]).values():
        train(of_run, quiet=True)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(Stopped):
            train_students(settings(photos, tmp_path / "runs", **CASES[case]), quiet=True)
    train_students(settings(photos, tmp_path / "runs", resume=True, **CASES[case]), quiet=True)
    for name in STUDENTS:
        assert_same(tmp_path / "runs" / name, tmp_path / "alone" / name)


def test_queues_are_in_the_same_memory_kind_by_kind(photos, tmp_path, monkeypatch):
    real, kinds = engine.train_step, []

    def stepping(runs, batches):
        outputs = real(runs, batches)
        kinds.append([[id(queue._buffer) for queue in run.method.teacher_queues()] for run in runs])
        return outputs

    monkeypatch.setattr(engine, "train_step", stepping)
    train_students(settings(photos, tmp_path / "runs", epochs=1, **CASES["crops"]), quiet=True)
    for one, other in kinds:
        assert one == other
        assert len(set(one)) == 2
    saved = state(tmp_path / "runs" / STUDENTS[0])["method"]
    assert not torch.equal(saved["buffer"], saved["small.buffer"])


def test_small_crops_are_replayed_from_the_cache_without_the_teacher(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSEED_CACHE", str(tmp_path / "cache"))

    def run(name: str) -> Path:
        changes = CASES["crops"] | {"cache_views": 2, "cache_crops": True}
        given = settings(photos, tmp_path / name, students=STUDENTS[:1], **changes)[STUDENTS[0]]
        train(given, quiet=True)
        return given.out

    filled = run("filled")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(known, "load_teacher", refuse)
    monkeypatch.setattr(Teacher, "_network", refuse)
    monkeypatch.setattr(known.DeferredTeacher, "_network", refuse)
    replayed = run("replayed")
    assert_same(filled, replayed)


def test_another_number_of_crops_is_refused_on_resume(photos, tmp_path):
    (given,) = settings(photos, tmp_path / "run", students=STUDENTS[:1], epochs=1).values()
    train(given, quiet=True)
    (given.out / "summary.json").unlink()
    with pytest.raises(InputError, match=r"small_crops=2: the run in .* has 0; give that"):
        train(given.replaced(resume=True, small_crops=2), quiet=True)


def test_a_warm_queue_is_full_at_the_first_step_and_each_student_has_its_own(photos, tmp_path, monkeypatch):
    real, found = engine.train_step, []

    def stepping(runs, batches):
        found.append([(len(run.method.queue), run.method.queue.rows().clone()) for run in runs])
        return real(runs, batches)

    monkeypatch.setattr(engine, "train_step", stepping)
    given = {"epochs": 1, "queue_warmup": True}
    train_students(settings(photos, tmp_path / "runs", **given), quiet=True)
    sizes, rows = zip(*found[0], strict=True)
    assert sizes == (32, 32)
    assert torch.equal(*rows)
    del found[:]
    grid = {"queue_warmup": [False, True]}
    common = vars(settings(photos, tmp_path / "grid", **given)[STUDENTS[0]]) | {"out": tmp_path / "grid"}
    del common["student"], common["queue_warmup"]
    train_students(several(SeedSettings, common, STUDENTS[:1], grid), quiet=True)
    assert [size for size, _ in found[0]] == [0, 32]
    assert [size for size, _ in found[1]] == [12, 32]
    assert torch.equal(found[0][1][1], rows[0])
    cold, warm = (held for _, held in found[1])
    assert torch.equal(warm[4:16], cold)  # 36 rows went before
    assert torch.equal(warm[16:], rows[0][16:])


def test_the_rows_of_a_warm_queue_are_of_views_that_no_epoch_has(photos, tmp_path, monkeypatch):
    batch, asked = TrainingViews.batch, []
    monkeypatch.setattr(
        TrainingViews, "batch", lambda self, request: (asked.append(request.epoch), batch(self, request))[1]
    )
    (given,) = settings(photos, tmp_path / "a", students=STUDENTS[:1], queue_warmup=True, epochs=1).values()
    train(given, quiet=True)
    assert asked[:6] == [1_000_000] * 6  # 36 images in micro-batches of 6, for 32 rows
    assert max(asked[7:]) <= 1


def test_the_chosen_temperature_is_noted_kept_and_used(photos, tmp_path, capsys):
    (given,) = settings(photos, tmp_path / "run", students=STUDENTS[:1], **CASES["auto"], epochs=1).values()
    train(given)
    config = json.loads((given.out / "config.json").read_text())
    chosen = config["teacher_temperature"]
    assert isinstance(chosen, float)
    assert config["target_perplexity"] == 3.0
    note = f"teacher temperature {chosen:g}: its target spreads over 3 images on average"
    assert note in capsys.readouterr().err
    (fixed,) = settings(
        photos, tmp_path / "fixed", students=STUDENTS[:1], teacher_temperature=chosen, epochs=1
    ).values()
    train(fixed, quiet=True)
    assert_same(given.out, fixed.out)
    (given.out / "summary.json").unlink()
    train(given.replaced(resume=True), quiet=True)
    assert json.loads((given.out / "config.json").read_text())["teacher_temperature"] == chosen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixup": -1.0}, "mixup=-1.0: give a number from 0 to 1000000"),
        ({"mixup": 0.2, "cache_views": 2}, "mixup=0.2: mixes other pairs of images in each epoch"),
        ({"mixup": 0.2, "batch_size": 10}, r"batch_size=10: it has to be a multiple of 4 \(devices × nodes"),
        ({"target_perplexity": 1.0}, "target_perplexity=1.0: give a number above 1"),
        (
            {"target_perplexity": 40.0},
            "target_perplexity=40.0: the queue has 32 rows; give a number below 33",
        ),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.0: give a number above 0"),
        ({"val_data": "two"}, "teacher_temperature=auto: is measured on held-out images, of which there are"),
    ],
)
def test_wrong_values_are_refused_in_one_line_before_anything_is_written(photos, tmp_path, changes, message):
    if "val_data" in changes:
        few = tmp_path / "few"
        few.mkdir()
        for number in (0, 1):
            (few / f"{number}.jpg").write_bytes((photos / "disc" / f"{number:02d}.jpg").read_bytes())
        changes = {"val_data": (str(few),)}
    given = {"teacher_temperature": "auto"} | changes
    with pytest.raises(InputError, match=message) as caught:
        train_students(settings(photos, tmp_path / "runs", students=STUDENTS[:1], **given), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
