"""Training loops that take turns on one machine: each in processes of its own, stopped while another one runs.

A side is a command that writes a line to the file descriptor `BENCH_STAMPS` after each training step. The controller
stops its process group (SIGSTOP) between its turns, so it needs no knowledge of the loop inside, and nothing of a side,
decoding workers included, runs during another side's turn. Times are `time.monotonic()`, which all processes of a
machine share; the stops are subtracted.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

STAMPS = "BENCH_STAMPS"


class Stamper:
    """A side's own half: reports the ends of its steps, and time that does not count."""

    def __init__(self) -> None:
        self.stream = os.fdopen(int(os.environ[STAMPS]), "w", buffering=1)

    def step(self) -> None:
        """A training step has ended, its result has been computed."""
        self.stream.write(json.dumps({"step": time.monotonic()}) + "\n")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Work of the benchmark, not of the loop: it does not count."""
        began = time.monotonic()
        yield
        self.stream.write(json.dumps({"away": [began, time.monotonic()]}) + "\n")


class Side:
    """A training loop in processes of its own.

    Attributes:
        name: for tables.
        batch: images per step.
        total: steps after which it has done all it was asked for; it may end by itself then.
        started: seconds from the command to the end of the first step, once it has run.
        turns: seconds per step in each turn after the first (warm-up).
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, batch: int, total: int, patience: float = 240
    ) -> None:
        self.name, self.batch, self.total, self.patience = name, batch, total, patience
        self.command, self.log = list(command), log
        self.turns: list[float] = []
        self.started: float | None = None
        self._stamps: list[float] = []
        self._pauses: list[tuple[float, float]] = []
        self._away: list[tuple[float, float]] = []
        self._buffer = b""
        self._process: subprocess.Popen | None = None
        self._pipe = -1

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self._stamps)

    @property
    def done(self) -> bool:
        """Whether it has done all its steps."""
        return self.steps >= self.total

    def times(self) -> list[float]:
        """For each step the seconds from the command to its end, without the stops."""
        return [self._active(stamp) for stamp in self._stamps]

    def turn(self, steps: int) -> float:
        """Run until this many more steps have ended; returns seconds per step.

        Raises:
            RuntimeError: the side ended or hangs; the end of its log is in the message.
        """
        wanted = min(self.total, self.steps + steps)
        before, first = self.steps, self._process is None
        resumed = self._resume()
        began = self._active(resumed)
        self._await(wanted)
        spent = self._active(self._stamps[wanted - 1])
        self._stop()
        if first:
            self.started = self._active(self._stamps[0])
            return (spent - self.started) / max(1, wanted - 1)
        seconds = (spent - began) / (wanted - before)
        self.turns.append(seconds)
        return seconds

    def finish(self) -> None:
        """Let it run to its end, whatever it does after its last step."""
        if self._process is not None and self._process.poll() is None:
            self._resume()
            self._process.wait(self.patience)

    def end(self) -> None:
        """End its processes, stopped or not."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._pipe)
        self._process = None

    def _resume(self) -> float:
        now = time.monotonic()
        if self._process is None:
            self._pipe, theirs = os.pipe()
            environment = os.environ | {STAMPS: str(theirs)}
            with self.log.open("w") as log:
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[theirs],
                    start_new_session=True,
                )
            os.close(theirs)
            self._pauses = [(0.0, now)]
        else:
            began, _ = self._pauses[-1]
            self._pauses[-1] = (began, now)
            os.killpg(self._process.pid, signal.SIGCONT)
        return now

    def _stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGSTOP)
        self._pauses.append((time.monotonic(), float("inf")))

    def _await(self, steps: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.patience
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            ended = False
            while self.steps < steps:
                if selector.select(timeout=0.5):
                    ended = not self._read()
                if self.steps < steps and (ended or time.monotonic() > deadline):
                    said = self.log.read_text(errors="replace")[-1500:]
                    state = "ended" if ended else "hangs"
                    raise RuntimeError(f"{self.name} {state} at step {self.steps}:\n{said}")

    def _read(self) -> bool:
        """Take in what it has written; False: it has closed its end."""
        new = os.read(self._pipe, 65536)
        self._buffer += new
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            said = json.loads(line)
            if "step" in said:
                self._stamps.append(said["step"])
            else:
                self._away.append(tuple(said["away"]))
        return bool(new)

    def _active(self, moment: float) -> float:
        """Seconds that it had run for at a moment: the union of what does not count is left out."""
        counted, last = 0.0, 0.0
        for start, end in sorted([*self._pauses, *self._away]):
            if start >= moment:
                break
            counted += max(0.0, start - last)
            last = max(last, min(end, moment))
        return counted + moment - last


@contextmanager
def ended_at_exit(sides: Sequence[Side]) -> Iterator[None]:
    """End all sides' processes on the way out, also where this process is asked to stop."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        for side in sides:
            side.end()
        signal.signal(signal.SIGTERM, before)


def take_turns(sides: Sequence[Side], steps: int, limit: float | None = None) -> None:
    """Turns of this many steps until each side has done all its steps; the first turn of each warms up.

    With a limit in seconds no round begins after it, but two are always done.
    """
    began: float | None = None
    while waiting := [side for side in sides if not side.done]:
        rounds = min(len(side.turns) for side in waiting)
        if limit is not None and began is not None and rounds >= 2 and time.monotonic() - began > limit:
            return
        for side in waiting:
            seconds = side.turn(steps)
            each = f"{1000 * seconds / side.batch:8.3f} ms/image"
            print(f"    {side.name:34} step {side.steps:5}  {each}", flush=True)
        began = began or time.monotonic()
