"""Several processes of a run: none outlives another, and a lost one is reported in one line."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from tinyseed.errors import RunError
from tinyseed.progress import Progress
from tinyseed.threads import usable_cores

STEP_PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others' part of a step."""

WAITING_PATIENCE = timedelta(days=7)
"""How long processes wait for the first one, which evaluates and saves for all. Its death ends the wait at once."""

_LOOK_SECONDS, _GRACE_SECONDS = 0.5, 15.0
_LOST = re.compile("gloo|NCCL|connection (closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)


def divide_cores(processes: int) -> None:
    """Give this process' networks its part of the cores, so that its threads need not wait for those of others."""
    threads = max(1, usable_cores() // processes)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what it starts


def watch(parent: int, children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End this process soon after its launcher or one of the processes that it has launched has failed.

    Usually the lost connection does that at once. A process that waits for a GPU, or for others to join, does not
    notice; the grace is for one that does and is still saving or cleaning up.
    """

    def failed() -> str:
        if os.getppid() != parent:
            return "the process that launched this one has ended"
        codes = [process.poll() for process in children]
        return "another process of this run has failed" if any(codes) else ""

    def look() -> None:
        while not failed():
            time.sleep(_LOOK_SECONDS)
        time.sleep(_GRACE_SECONDS)
        Progress().say(f"tinyseed: error: {failed()}, so this one ends too; the last checkpoint is intact")
        for process in children:
            process.kill()
        os._exit(1)

    threading.Thread(target=look, name="watch", daemon=True).start()


@contextmanager
def connected() -> Iterator[None]:
    """Report a lost connection in one line.

    Raises:
        RunError: another process has ended, or has not answered in time.
    """
    try:
        yield
    except RunError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        remedy = "if it has said why, that is above; the last checkpoint is intact, resume with `resume`"
        raise RunError(f"another process of this run has ended or does not answer; {remedy}") from error
