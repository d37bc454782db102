"""Several processes of a run, of which one fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from tinyseed.engine.processes import connected
from tinyseed.errors import RunError


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"
        ),
        dist.DistNetworkError("The client socket has timed out after 600000ms"),
        dist.DistBackendError("NCCL communicator was aborted on rank 1."),
    ],
)
def test_a_lost_connection_is_one_line(error):
    with (
        pytest.raises(RunError, match="another process of this run has ended or does not answer"),
        connected(),
    ):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), RunError("the loss is nan"), ValueError("x")]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, connected():
        raise error
    assert caught.value is error


WATCHED = """
import os, subprocess, sys, time
from tinyseed.engine import processes
processes._GRACE_SECONDS = 0.3
children = [subprocess.Popen(["sh", "-c", f"exit {code}"]) for code in sys.argv[1:]]
endless = subprocess.Popen(["sleep", "100"])
processes.watch(os.getppid(), [*children, endless])
print(endless.pid, flush=True)
time.sleep(2)
endless.kill()
"""


@pytest.mark.parametrize(("codes", "code"), [(("0", "2"), 1), (("0",), 0)])
def test_a_failed_child_ends_the_first_process_and_all_others(codes, code):
    """As where it waits for a GPU, and never notices that the connection is lost."""
    command = [sys.executable, "-c", WATCHED, *codes]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code
    assert ended.stderr.count("\n") == code
    assert ("another process of this run has failed" in ended.stderr) == bool(code)
    assert not Path(f"/proc/{ended.stdout.strip()}").exists() or not alive(int(ended.stdout))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [("other", signal.SIGKILL), ("other", signal.SIGTERM)])
def test_the_first_process_ends_with_one_line(photos, tmp_path, victim, number):
    out = tmp_path / "run"
    networks = ("--teacher", "test_resnet", "--teacher-weights", "random", "--student", "test_resnet")
    sizes = ("--image-size", "32", "--batch-size", "8", "--epochs", "5000", "--log-every", "1")
    command = ("distill", "--data", str(photos), *networks, *sizes, "--evaluate-every", "5000")
    process = subprocess.Popen(
        [sys.executable, "-m", "tinyseed", *command, "--workers", "0", "--devices", "2", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics, began = out / "metrics.jsonl", time.monotonic()
    while time.monotonic() - began < 120 and not (metrics.exists() and '"step": 8' in metrics.read_text()):
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (other,) = (int(child) for child in children if "distill" in Path(f"/proc/{child}/cmdline").read_text())
    os.kill(other, number)
    _, errors = process.communicate(timeout=60)
    assert not alive(other)
    assert "Traceback" not in errors
    assert (out / "checkpoints" / "last.ckpt").exists()
    told = [line for line in errors.splitlines() if line.startswith("tinyseed:")]
    if number == signal.SIGKILL:
        assert process.returncode == 1
        assert len(told) == 1
        assert "another process of this run has ended" in told[0]
    else:
        assert process.returncode == 143
        assert len(told) == 1
        assert "and saved; resume with --resume" in told[0]
