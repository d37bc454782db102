"""Two processes on the same global batch are one process (gloo, torchrun)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinyseed import cli

DISTILL = (
    "distill",
    "--teacher",
    "convnext_atto",
    "--teacher-weights",
    "random",
    "--student",
    "convnext_atto",
)


def launch(
    processes: int,
    photos: Path,
    out: Path,
    tmp_path: Path,
    *,
    batch: int,
    epochs: int,
    verb: tuple[str, ...] = DISTILL,
    more: tuple[str, ...] = (),
) -> dict:
    """Train and return the last checkpoint."""
    views = "--image-size 32 --precision 32"
    lengths = f"--batch-size {batch} --epochs {epochs} --log-every 1 --lr 0.3"
    settings = [
        *verb,
        "--data",
        str(photos),
        "--out",
        str(out),
        *views.split(),
        *lengths.split(),
        *more,
    ]
    if processes == 1:  # the reference needs no process of its own
        cli.run(settings)
        return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    runner = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *runner, "-m", "tinyseed.cli", *settings],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


SEED_SETTINGS = {
    "paper": (),
    "crops": ("--large-crops", "2", "--small-crops", "2", "--small-crop-size", "32"),
    "mixup": ("--mixup", "0.4", "--queue-warmup", "--queue-size", "24", "--teacher-temperature", "auto"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SEED_SETTINGS)
def test_two_processes_give_the_losses_and_the_queue_of_one(photos, tmp_path, case):
    """ConvNeXt has no batch norm, so the networks see the same numbers however the batch is divided."""
    states, losses = {}, {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}"
        more = SEED_SETTINGS[case]
        states[processes] = launch(processes, photos, out, tmp_path, batch=8, epochs=2, more=more)
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[processes] = {line["step"]: line["loss"] for line in logged if "loss" in line}
    assert losses[1].keys() == losses[2].keys()
    assert len(losses[1]) == 12
    for step, loss in losses[1].items():
        assert losses[2][step] == pytest.approx(loss, rel=1e-6, abs=1e-6), step
    for name, rows in states[1]["method"].items():
        torch.testing.assert_close(states[2]["method"][name], rows, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(photos, tmp_path):
    """After two steps the momentum buffer is the second gradient, but for weight decay.

    The first step has none to compare: with an empty queue SEED's loss is 0.
    """
    states = {
        processes: launch(processes, photos, tmp_path / f"{processes}", tmp_path, batch=48, epochs=2)
        for processes in (1, 2)
    }
    one, two = (states[processes]["optimizer"]["state"] for processes in (1, 2))
    assert max(entry["momentum_buffer"].abs().max() for entry in one.values()) > 0.1
    for number, entry in one.items():
        torch.testing.assert_close(
            two[number]["momentum_buffer"], entry["momentum_buffer"], rtol=1e-6, atol=1e-6
        )


@pytest.mark.slow
def test_processes_agree_on_a_run_limited_by_time(photos, tmp_path):
    """Their clocks differ; the schedule, the checkpoints in between and the end may not, or they would wait forever."""
    more = ("--max-minutes", "0.08", "--checkpoint-minutes", "0.01", "--log-every", "3")
    state = launch(2, photos, tmp_path / "run", tmp_path, batch=8, epochs=1, more=more)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == state["step"] > 3
    assert 0.07 < summary["minutes"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "swav"])
def test_pretraining_in_two_processes_is_that_in_one(photos, tmp_path, method):
    """Losses, weights and queues over several steps of SGD, with networks without batch norm."""
    more = ("--projector", "mlp", "--optimizer", "sgd", "--final-lr", "0", "--workers", "0")
    if method == "swav":
        more += ("--prototypes", "6", "--small-crops", "2", "--small-crop-size", "32", "--queue-size", "10")
        more += ("--queue-start-epoch", "0", "--freeze-prototypes-epochs", "0")
    states, losses = {}, {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}"
        verb = ("pretrain", method, "--backbone", "convnext_atto")
        states[processes] = launch(processes, photos, out, tmp_path, verb=verb, batch=12, epochs=2, more=more)
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[processes] = [line["loss"] for line in logged if "loss" in line]
        assert (out / "report.html").exists()
    assert len(losses[1]) == 8
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    for part in ("module", "method"):
        for name, value in states[1][part].items():
            torch.testing.assert_close(states[2][part][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--patch-affinity-weight", "0.5", "--image-size", "64"),
        ("--method", "seed-moco", "--encoder-momentum", "0.9"),
    ],
    ids=["patch-affinity", "seed-moco"],
)
def test_what_a_student_learns_beside_the_rows_is_that_of_one_process(photos, tmp_path, more):
    """Losses, weights, queues and the key encoder, with networks without batch norm."""
    states, losses = {}, {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}"
        states[processes] = launch(processes, photos, out, tmp_path, batch=12, epochs=2, more=more)
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[processes] = [line["loss"] for line in logged if "loss" in line]
    assert len(losses[1]) == 8
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)
    for part in ("module", "method"):
        for name, value in states[1][part].items():
            torch.testing.assert_close(states[2][part][name], value, rtol=1e-4, atol=1e-5, msg=name)


def assert_clipped(state: dict) -> None:
    """The first step of SEED has no gradient, so after two steps the momentum is the second one's, clipped."""
    momenta = [entry["momentum_buffer"] for entry in state["optimizer"]["state"].values()]
    assert float(torch.cat([each.flatten() for each in momenta]).norm()) == pytest.approx(0.01, rel=1e-4)


def assert_same_states(one: dict, other: dict, *parts: str) -> None:
    for part in parts:
        assert one[part].keys() == other[part].keys() != set()
        for name, value in one[part].items():
            torch.testing.assert_close(other[part][name], value, rtol=1e-4, atol=1e-6, msg=name)


CLIPPED = ("--clip-gradients", "0.01", "--weight-decay", "0", "--ema", "0.9")


def test_clipped_gradients_are_those_of_the_whole_batch_however_it_is_accumulated(photos, tmp_path):
    whole, parts = (
        launch(
            1,
            photos,
            tmp_path / number,
            tmp_path,
            batch=48,
            epochs=2,
            more=(*CLIPPED, "--accumulate", number),
        )
        for number in ("1", "4")
    )
    assert_clipped(whole)
    assert_clipped(parts)
    assert_same_states(whole, parts, "module", "average")


@pytest.mark.slow
def test_two_processes_clip_and_average_as_one_does(photos, tmp_path):
    more = (*CLIPPED, "--accumulate", "2")
    one, two = (
        launch(number, photos, tmp_path / f"{number}", tmp_path, batch=48, epochs=2, more=more)
        for number in (1, 2)
    )
    assert_clipped(two)
    assert_same_states(one, two, "module", "average")
