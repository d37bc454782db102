"""Two processes on the same global batch are one process (gloo, torchrun)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def launch(processes: int, photos: Path, out: Path, tmp_path: Path) -> None:
    settings = [
        *(
            "distill",
            "--data",
            str(photos),
            "--out",
            str(out),
            "--teacher",
            "convnext_atto",
            "--teacher-weights",
            "random",
        ),
        *(
            "--student",
            "convnext_atto",
            "--batch-size",
            "8",
            "--image-size",
            "32",
            "--precision",
            "32",
            "--epochs",
            "2",
        ),
        *("--log-every", "1", "--lr", "0.3"),
    ]
    runner = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
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


@pytest.mark.slow
def test_two_processes_give_the_loss_gradient_and_queue_of_one(photos, tmp_path):
    """The first step's momentum buffer is the gradient (plus weight decay); later ones follow from it.

    ConvNeXt has no batch norm, so the networks see the same numbers however the batch is divided.
    """
    states, metrics = {}, {}
    for processes in (1, 2):
        out = tmp_path / f"{processes}"
        launch(processes, photos, out, tmp_path)
        states[processes] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
        metrics[processes] = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    one, two = (
        {line["step"]: line["loss"] for line in metrics[processes] if "loss" in line} for processes in (1, 2)
    )
    assert one.keys() == two.keys()
    assert len(one) == 12
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-6, abs=1e-6), step
    for name, rows in states[1]["method"].items():
        torch.testing.assert_close(states[2]["method"][name], rows, rtol=1e-6, atol=1e-6)
    for number, entry in states[1]["optimizer"]["state"].items():
        other = states[2]["optimizer"]["state"][number]["momentum_buffer"]
        scale = entry["momentum_buffer"].abs().max().clamp(min=1e-3)
        torch.testing.assert_close(other / scale, entry["momentum_buffer"] / scale, rtol=0, atol=1e-5)
