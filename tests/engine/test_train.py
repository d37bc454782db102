"""The loop as a whole, on a folder of small pictures and the smallest networks."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from tinyseed.engine.train import train
from tinyseed.errors import InputError, RunError
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.seed import SeedSettings
from tinyseed.signals import Stopped

SMALL = {"epochs": 2, "batch_size": 8, "image_size": 32, "workers": 0, "precision": "32", "log_every": 1}


def distill_config(photos: Path, out: Path, **changes) -> SeedSettings:
    settings = {
        "teacher": "resnet10t",
        "teacher_weights": "random",
        "student": "mobilenetv3_small_050",
        "evaluate_every": 1,
        **SMALL,
        **changes,
    }
    return SeedSettings(data=(str(photos),), out=out, **settings)


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(out) if "loss" in line}


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    parts = {"module": state["module"], "method": state["method"]}
    weights = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    momenta = {
        f"momentum.{number}": entry["momentum_buffer"]
        for number, entry in state["optimizer"]["state"].items()
    }
    return {name: value for name, value in (weights | momenta).items() if torch.is_tensor(value)}


def assert_same_weights(one: Path, other: Path) -> None:
    left, right = final_weights(one), final_weights(other)
    assert left.keys() == right.keys()
    assert len(left) > 100
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_a_distilled_run_folder_is_complete(photos, tmp_path):
    out = tmp_path / "run"
    summary = train(distill_config(photos, out, val_data=(str(photos),)), quiet=True)
    config = json.loads((out / "config.json").read_text())
    assert config["command"] == "distill"
    assert config["queue_size"] == 16  # the largest power of two up to half of 60 training images
    assert config["workers"] == 0
    assert config["precision"] == "32"
    logged = lines(out)
    assert [line["step"] for line in logged if "loss" in line] == list(
        range(1, 15)
    )  # 60 // 8 = 7 steps an epoch
    assert {"step", "epoch", "loss", "lr", "images_per_s", "data_wait"} <= logged[1].keys()
    evaluations = [line for line in logged if "neighbour_agreement" in line]
    assert [line["epoch"] for line in evaluations] == [0, 1, 2]
    expected = {
        "knn_top1",
        "knn_top1_teacher",
        "knn_ratio",
        "effective_rank",
        "effective_rank_teacher",
        "target_entropy",
    }
    assert expected <= evaluations[-1].keys()
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 14
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["data"]["images"] == 60
    assert lineage["data"]["trained_on"] == lineage["data"]["held_out_images"] == 60
    assert lineage["teacher"]["digest"]
    plain = timm.create_model("mobilenetv3_small_050", num_classes=0)
    plain.load_state_dict(load_file(out / "student.safetensors"), strict=True)
    assert (out / "projector.safetensors").exists()


def test_moco_learns_to_tell_images_apart(photos, tmp_path):
    config = MoCoSettings(
        data=(str(photos),),
        out=tmp_path / "run",
        backbone="resnet10t",
        encoder_momentum=0.9,
        lr=1.0,
        **SMALL | {"epochs": 8},
    )
    summary = train(config, quiet=True)
    values = list(losses(tmp_path / "run").values())
    assert all(math.isfinite(value) for value in values)
    # With an empty queue InfoNCE is 0; with the queue of 16 full, a network that tells nothing apart has log 17.
    assert sum(values[-6:]) / 6 < math.log(17) - 0.1
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    assert summary["command"] == "pretrain moco-v2"


def test_the_same_settings_give_the_same_run_with_any_number_of_workers(photos, tmp_path):
    train(distill_config(photos, tmp_path / "none", workers=0), quiet=True)
    train(distill_config(photos, tmp_path / "two", workers=2), quiet=True)
    assert losses(tmp_path / "none") == losses(tmp_path / "two")
    assert_same_weights(tmp_path / "none", tmp_path / "two")


def command(photos: Path, out: Path, *more: str) -> list[str]:
    settings = [
        *("--data", str(photos), "--out", str(out), "--teacher", "resnet10t", "--teacher-weights", "random"),
        *(
            "--student",
            "mobilenetv3_small_050",
            "--batch-size",
            "8",
            "--image-size",
            "32",
            "--precision",
            "32",
        ),
        *("--log-every", "1", *more),
    ]
    return [sys.executable, "-m", "tinyseed.cli", "distill", *settings]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        if (out / "metrics.jsonl").exists() and max(losses_so_far(out), default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError("the run never got there")


def losses_so_far(out: Path) -> list[int]:
    steps = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:  # being written just now
            continue
    return steps


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory) -> Path:
    """Four epochs without an interruption; the number of workers changes nothing, as another test shows."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(distill_config(photos, out, epochs=4), quiet=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "killed_after"), [(0, 9), (2, 14)])
def test_killed_and_resumed_equals_unbroken_bit_for_bit(photos, tmp_path, unbroken, workers, killed_after):
    more = ("--workers", str(workers), "--epochs", "4")
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command(photos, broken, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_for_step(broken, killed_after, process)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stderr.close()
    assert not (broken / "summary.json").exists()
    stopped_at = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)["step"]
    assert 0 < stopped_at < 24
    train(distill_config(photos, broken, epochs=4, workers=workers, resume=True), quiet=True)
    assert losses(broken) == losses(unbroken)
    assert_same_weights(broken, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_says_so_and_the_run_goes_on(photos, tmp_path, number, code):
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(photos, out, "--epochs", "400", "--workers", "1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    wait_for_step(out, 3, process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "saved; resume with --resume" in told
    assert "Traceback" not in told
    stopped_at = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["step"]
    assert stopped_at == max(losses(out))


def test_a_stopped_run_resumes_and_equals_the_unbroken_one(photos, tmp_path, monkeypatch, capsys):
    train(distill_config(photos, tmp_path / "whole"), quiet=True)
    from tinyseed.engine import train as engine

    real_step = engine.train_step

    def stops_in_the_fourth(runs, batches):
        outputs = real_step(runs, batches)
        if runs[0].step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return outputs

    monkeypatch.setattr(engine, "train_step", stops_in_the_fourth)
    with pytest.raises(Stopped) as stopped:
        train(distill_config(photos, tmp_path / "broken"), quiet=True)
    assert stopped.value.exit_code == 143
    monkeypatch.undo()
    capsys.readouterr()
    train(distill_config(photos, tmp_path / "broken", resume=True))
    assert "resumed at step 4" in capsys.readouterr().err
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


def test_a_run_killed_before_its_first_checkpoint_begins_anew(photos, tmp_path, monkeypatch):
    from tinyseed.engine import train as engine

    def dies(runs, batches):
        raise MemoryError

    train(distill_config(photos, tmp_path / "whole"), quiet=True)
    monkeypatch.setattr(engine, "train_step", dies)
    with pytest.raises(MemoryError):
        train(distill_config(photos, tmp_path / "broken"), quiet=True)
    monkeypatch.undo()
    lineage = (tmp_path / "broken" / "lineage.json").read_text()
    train(distill_config(photos, tmp_path / "broken", resume=True), quiet=True)
    assert [line["step"] for line in lines(tmp_path / "broken")] == [
        line["step"] for line in lines(tmp_path / "whole")
    ]
    assert (tmp_path / "broken" / "lineage.json").read_text() == lineage


def test_minutes_end_a_run_as_a_whole_one(photos, tmp_path):
    out = tmp_path / "run"
    began = time.monotonic()
    summary = train(distill_config(photos, out, max_minutes=0.05, epochs=10_000), quiet=True)
    assert time.monotonic() - began < 60
    assert 0.04 < summary["minutes"] < 0.3
    assert (out / "student.safetensors").exists()
    rates = [line["lr"] for line in lines(out) if "lr" in line]
    assert rates[-1] < 0.2 * max(rates)


def test_accumulated_micro_batches_equal_the_whole_batch(photos, tmp_path):
    """A network without batch norm: the same images, loss and update however the batch is divided."""
    small = {"student": "convnext_atto", "epochs": 1, "image_size": 32}
    train(distill_config(photos, tmp_path / "whole", **small), quiet=True)
    train(distill_config(photos, tmp_path / "parts", **small, accumulate=4), quiet=True)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for step, loss in whole.items():
        assert parts[step] == pytest.approx(loss, rel=1e-5), step


def test_a_loss_that_is_no_number_stops_the_run_at_its_step(photos, tmp_path, monkeypatch):
    """Weights break in the ninth step; losses are looked at every five; the last checkpoint is from step 6."""
    from tinyseed.engine import train as engine

    real_step = engine.train_step

    def breaks_in_the_ninth(runs, batches):
        if runs[0].step == 8:
            with torch.no_grad():
                next(runs[0].method.module.parameters()).fill_(float("nan"))
        return real_step(runs, batches)

    monkeypatch.setattr(engine, "train_step", breaks_in_the_ninth)
    out = tmp_path / "run"
    with pytest.raises(
        RunError, match=r"the loss became nan at step 9; the last good checkpoint is .*last\.ckpt"
    ):
        train(distill_config(photos, out, epochs=30, log_every=5), quiet=True)
    last = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["step"] == 6
    assert all(torch.isfinite(value).all() for value in last["module"].values())


@pytest.fixture
def photos_with_bad_ones(photos, tmp_path):
    def build(bad: int) -> Path:
        folder = tmp_path / f"with-{bad}-bad"
        for name in ("disc", "square"):
            (folder / name).mkdir(parents=True)
            for file in (photos / name).iterdir():
                (folder / name / file.name).write_bytes(file.read_bytes())
        for number in range(bad):
            victim = folder / "disc" / f"{number:02d}.jpg"
            victim.write_bytes(victim.read_bytes()[:100] if number % 2 else b"no image at all")
        return folder

    return build


def test_unreadable_images_are_skipped_counted_and_listed(photos_with_bad_ones, tmp_path):
    out = tmp_path / "run"
    folder = photos_with_bad_ones(3)
    summary = train(distill_config(folder, out, epochs=3), quiet=True)
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    names = {Path(line["name"]).name for line in listed}
    assert names <= {"00.jpg", "01.jpg", "02.jpg"}
    assert len(listed) == len(names) == summary["unreadable_images"] > 0
    assert all(line["reason"] for line in listed)
    assert len(losses(out)) == 18


def test_too_many_unreadable_images_stop_the_run(photos_with_bad_ones, tmp_path):
    with pytest.raises(RunError, match="more than 10% of the images cannot be read"):
        train(distill_config(photos_with_bad_ones(20), tmp_path / "run", epochs=3), quiet=True)


def test_all_images_unreadable_stops_the_run(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(RunError, match=r"more than 10% of the images cannot be read"):
        train(distill_config(folder, tmp_path / "run"), quiet=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 64}, "batch_size=64: exceeds the number of training images (54)"),
        ({"epochs": 0}, "epochs=0: give a number from 1 to 1000000"),
        ({"lr": float("nan")}, "lr=nan: give a number above 0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.0: give a number above 0"),
        ({"accumulate": 3}, "batch_size=8: it has to be a multiple of `accumulate` 3"),
        ({"student": "resnet1888"}, "student=resnet1888: "),
        ({"devices": "none"}, "devices=none: give auto or a number from 1 to 1024"),
        (
            {"projector": "linear", "projector_layers": 3},
            "projector_layers=3: is for MLP heads; give it with `projector` mlp or mlp-bn",
        ),
        (
            {"optimizer": "adamw"},
            "lr=0.03: is too large for `optimizer` adamw, give up to 0.01, such as 0.001",
        ),
        (
            {"optimizer": "adamw", "lr": 0.001, "momentum": 1.0},
            "momentum=1.0: is the first beta of `optimizer` adamw, give less than 1",
        ),
        ({"clip_gradients": 0.0}, "clip_gradients=0.0: give a number above 0"),
        ({"ema": 1.0}, "ema=1.0: give a number from 0 to 0.999999"),
        ({"student_prefix": "a"}, "student_prefix=a: is a part of `student_weights`; give them, too"),
        ({"student_weights": "no/such"}, "student_weights=no/such: no such file or folder"),
        ({"projector_layers": 1}, "projector_layers=1: give a number from 2 to 16"),
        ({"warmup_epochs": 2}, "warmup_epochs=2: it has to be below `epochs` 2"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(photos, tmp_path, changes, told):
    out = tmp_path / "run"
    with pytest.raises(InputError) as caught:
        train(distill_config(photos, out, **changes), quiet=True)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_nothing_is_overwritten_unasked(photos, tmp_path):
    out = tmp_path / "run"
    train(distill_config(photos, out, epochs=1), quiet=True)
    with pytest.raises(InputError, match="holds another run"):
        train(distill_config(photos, out, epochs=1), quiet=True)
    with pytest.raises(InputError, match="this run is finished"):
        train(distill_config(photos, out, epochs=1, resume=True), quiet=True)
    (out / "summary.json").unlink()
    with pytest.raises(InputError, match=r"lr=0\.5: the run in .* has 0\.03"):
        train(distill_config(photos, out, epochs=1, resume=True, lr=0.5), quiet=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        train(distill_config(photos, other), quiet=True)
