"""The training step's speed on an idle machine and beside busy processes, for thread counts and scheduler settings.

Each setting trains in a process of its own, since most of them have to be in the environment before torch is loaded.
The processes take turns: one trains for a moment, on an idle machine, then beside one and two processes that do nothing
but compute, while all others sleep. A ratio compares two measurements of the same turn; medians over the turns.

    python bench/busy.py [--turns 3] [--seconds 2] [--case demo] [--settings default "one thread"]

Writes bench/results/busy.json.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

UNTOUCHED = {"GOMP_SPINCOUNT": "300000"}
"""What libgomp does where nothing is set: tinyseed leaves alone what is."""


@dataclass(frozen=True)
class Setting:
    """How a process trains: its environment, and calls before it begins."""

    environment: dict[str, str] = field(default_factory=dict)
    batch_class: bool = False
    niceness: int = 0
    slice_ms: float = 0


SETTINGS = {
    "default": Setting(),
    "torch's own": Setting(UNTOUCHED),
    "one thread": Setting(UNTOUCHED | {"OMP_NUM_THREADS": "1"}),
    "passive": Setting({"OMP_WAIT_POLICY": "passive"}),
    "spin 1000": Setting(UNTOUCHED | {"GOMP_SPINCOUNT": "1000"}),
    "spin 300": Setting(UNTOUCHED | {"GOMP_SPINCOUNT": "300"}),
    "spin 3000": Setting(UNTOUCHED | {"GOMP_SPINCOUNT": "3000"}),
    "spin 10000": Setting(UNTOUCHED | {"GOMP_SPINCOUNT": "10000"}),
    "bound": Setting(UNTOUCHED | {"OMP_PROC_BIND": "true"}),
    "bound, spin 1000": Setting(UNTOUCHED | {"OMP_PROC_BIND": "true", "GOMP_SPINCOUNT": "1000"}),
    "batch class": Setting(UNTOUCHED, batch_class=True),
    "nice 5": Setting(UNTOUCHED, niceness=5),
    "slice 0.1 ms": Setting(UNTOUCHED, slice_ms=0.1),
    "slice 0.1 ms, spin 1000": Setting(UNTOUCHED | {"GOMP_SPINCOUNT": "1000"}, slice_ms=0.1),
    "slice 0.1 ms, spin 3000": Setting(UNTOUCHED | {"GOMP_SPINCOUNT": "3000"}, slice_ms=0.1),
    "slice 0.1 ms, bound": Setting(UNTOUCHED | {"OMP_PROC_BIND": "true"}, slice_ms=0.1),
}

CASES = {
    "demo": ("tinyseed/clothing-resnet18", "mobilenetv3_small_050", 64, 128, 1024),
    "resnet50": ("resnet50", "resnet18", 64, 128, 65536),
}
"""Teacher, student, side of the views, batch, queue."""

BUSY = """
import os, sys
parent, x = int(sys.argv[1]), 1
while os.getppid() == parent:
    for _ in range(100_000):
        x = x * 3 % 1_000_003
"""
"""Computes until the benchmark ends, however it does."""


def main() -> None:
    given = arguments()
    if given.child:
        serve(given.child, given.case[0], Path(given.folder))
        return
    results = []
    for case in given.case:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            children = {
                name: stack.enter_context(Child(name, case, f"{folder}/{number}"))
                for number, name in enumerate(given.settings)
            }
            results += measure(case, children, given)
        if not given.quick:
            from common import machine, write_results

            write_results("busy", {"machine": machine(), "cores": os.cpu_count(), "results": results})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--case", nargs="+", default=["demo"], choices=CASES)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--same-session", action="store_true", help="busy processes belong to this session")
    parser.add_argument("--quick", action="store_true", help="write no results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


class Child:
    """A process that trains when it is asked to."""

    def __init__(self, name: str, case: str, folder: str) -> None:
        self.name = name
        command = [sys.executable, __file__, "--child", name, "--case", case, "--folder", folder]
        environment = os.environ | SETTINGS[name].environment
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def train(self, seconds: float) -> float:
        """Images/s over about this time."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def serve(name: str, case: str, folder: Path) -> None:
    """Train for as many seconds as each line of the standard input says; answer with images/s."""
    setting = SETTINGS[name]
    prepare(setting)
    import tinyseed  # noqa: F401  (as a user's program does, before torch)
    from step import Case, fill, teacher_with_head
    from tinyseed.assets import clothing
    from tinyseed.engine.runs import open_runs
    from tinyseed.engine.train import train_step
    from tinyseed.methods.seed import SeedSettings

    teacher, student, size, batch, queue = CASES[case]
    if "/" not in teacher:
        folder.mkdir(parents=True)
        teacher = str(teacher_with_head(Case(case, teacher, student, size, batch, queue, 0), folder))
    settings = SeedSettings(
        data=(str(clothing("train")),),
        out=folder / "run",
        teacher=teacher,
        student=student,
        image_size=size,
        batch_size=batch,
        queue_size=queue,
        validation_images=16,
    )
    with open_runs({"": settings}, quiet=True) as runs:
        (run,) = runs.all
        fill(run)
        batches = runs.batches()
        run.took(*train_step([run], batches))
        for line in sys.stdin:
            began, steps = time.perf_counter(), 0
            while time.perf_counter() - began < float(line):
                run.took(*train_step([run], batches))
                steps += 1
            print(steps * batch / (time.perf_counter() - began), flush=True)


def prepare(setting: Setting) -> None:
    """Scheduling of this process and the threads that it will start."""
    os.nice(setting.niceness)
    if setting.batch_class:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if setting.slice_ms:
        request_slice(setting.slice_ms)


def request_slice(milliseconds: float) -> None:
    """Ask Linux 6.12 or newer for another time slice; a shorter one comes sooner and more often."""
    import ctypes
    import struct

    content = struct.pack("=IIQiIQQQ", 48, 0, 0, 0, 0, int(milliseconds * 1e6), 0, 0)
    buffer = ctypes.create_string_buffer(content, len(content))
    if ctypes.CDLL(None, use_errno=True).syscall(314, 0, buffer, 0):
        print(f"no slice: {os.strerror(ctypes.get_errno())}", file=sys.stderr)


class Busy:
    """Processes that do nothing but compute."""

    def __init__(self, number: int, *, apart: bool = True) -> None:
        self.number = number
        self.apart = apart

    def __enter__(self) -> None:
        self.processes = [
            subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())], start_new_session=self.apart)
            for _ in range(self.number)
        ]
        time.sleep(0.1 * bool(self.processes))

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def measure(case: str, children: dict[str, Child], given: argparse.Namespace) -> list[dict]:
    speeds = {(name, busy): [] for name in children for busy in given.busy}
    for child in children.values():
        child.train(0.1)
    names = list(children)
    for turn in range(given.turns):
        for busy in given.busy:
            for place in range(len(names)):  # nobody is always the first
                name = names[(place + turn) % len(names)]
                child = children[name]
                with Busy(busy, apart=not given.same_session):
                    speeds[name, busy].append(child.train(given.seconds))
    rows = []
    print(f"\n{case}: images/s; of idle")
    for name in children:
        row = {"case": case, "setting": name, "environment": SETTINGS[name].environment}
        line = f"  {name:<26}"
        for busy in given.busy:
            row[f"busy_{busy}"] = statistics.median(speeds[name, busy])
            line += f"  {busy} busy {row[f'busy_{busy}']:6.0f}"
            if busy:
                idle = speeds[name, 0]
                shares = [now / before for now, before in zip(speeds[name, busy], idle, strict=True)]
                row[f"of_idle_{busy}"] = statistics.median(shares)
                line += f" {row[f'of_idle_{busy}']:4.0%}"
        print(
            f"{line}   {[[round(speed) for speed in speeds[name, busy]] for busy in given.busy]}", flush=True
        )
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
