"""What a distillation costs outside its networks: from the command to the first step, evaluations, saving, the report.

Two versions of the package run the same command in turns, each in a new process, once with an empty cache and once with
what that left. The driver below times the parts of a run by their functions. A run trains for a few seconds only; the
shares of a run of one and of ten minutes are computed from the measured parts:

    before the first step + after the last one + evaluations and checkpoints of the epochs between them,

where the version with `evaluate_every` "auto" spends at most 5 % and 2 % of the training time on the last two, and the
other one an evaluation and a checkpoint after each epoch. An epoch's time is that of its steps, from the median step.

    python bench/overhead.py --before ../checkout-of-another-commit [--turns 3] [--data PATH] [--teacher NAME]

Writes bench/results/overhead.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, write_results

HERE = Path(__file__).resolve().parent.parent
SECONDS = 8.0
BATCH = 128

DRIVER = """
import functools, json, sys, time
begun, first_line = float(sys.argv.pop(1)), time.time()
report = sys.argv.pop(1)
parts = {"python": first_line - begun}
now = time.time()
from tinyseed.engine import run, train
try:  # since several runs may share a pass
    from tinyseed.engine import runs, shared
    owners = (shared, runs, run)
except ImportError:
    owners = (run,)
parts["imports"] = time.time() - now
steps = []

def timed(owner, name, part):
    function = getattr(owner, name)
    @functools.wraps(function, updated=())
    def with_time(*given, **named):
        began = time.time()
        try:
            return function(*given, **named)
        finally:
            parts.setdefault(part, []).append(time.time() - began)
    setattr(owner, name, with_time)

for name, part in {"open_data": "data", "open_teacher": "teacher", "start": "runtime", "Monitor": "teacher measured",
        "build_learner": "student moved", "write_beginning": "lineage", "save_encoder": "model",
        "write_report": "report"}.items():
    for owner in owners:
        if hasattr(owner, name):
            timed(owner, name, part)
timed(owners[0].MadeFrom, "of", "digests")
timed(run.Run, "evaluate", "evaluations")
timed(run.Run, "save", "checkpoints")
step = train.train_step
def counted(*given):
    began = time.time()
    if not steps:
        parts["until the first step"] = began - begun
    output = step(*given)
    steps.append(time.time() - began)
    return output
train.train_step = counted
from tinyseed.cli import run as command
command(sys.argv[1:])
parts["whole"] = time.time() - begun
parts["steps"] = steps
open(report, "w").write(json.dumps(parts))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--before", required=True, help="a checkout to compare with")
    arguments.add_argument("--turns", type=int, default=3)
    arguments.add_argument("--data", default=str(HERE.parent / "shared/data/clothing160-cc0/train.parquet"))
    arguments.add_argument("--images", type=int, default=4061, help="images of the data")
    arguments.add_argument("--teacher", default="tinyseed/clothing-resnet18")
    arguments.add_argument("--student", default="resnet10t")
    given = arguments.parse_args()
    checkouts = {"before": Path(given.before).resolve(), "after": HERE}
    measured: dict[str, list[dict]] = {}
    for _ in range(given.turns):
        for side, checkout in checkouts.items():
            with tempfile.TemporaryDirectory() as cache:
                for state in ("empty cache", "filled cache"):
                    measured.setdefault(f"{side}, {state}", []).append(run(checkout, Path(cache), given))
    sides = {name: described(runs, given, auto=name.startswith("after")) for name, runs in measured.items()}
    for name, side in sides.items():
        print(f"\n{name}")
        for part, value in side.items():
            print(f"  {part:<34}{value:8.3f}")
    settings = {name: value for name, value in vars(given).items() if name not in ("before", "data")}
    settings["data"] = Path(given.data).name
    commits = {side: commit(checkout) for side, checkout in checkouts.items()}
    write_results(
        "overhead", {"machine": machine(), "settings": settings, "commits": commits, "sides": sides}
    )


def run(checkout: Path, cache: Path, given: argparse.Namespace) -> dict:
    """One short run in a process of its own; the seconds of its parts."""
    report, out = cache / "parts.json", cache / f"run-{time.time_ns()}"
    flags = ["distill", "--data", given.data, "--teacher", given.teacher, "--student", given.student]
    flags += ["--image-size", "64", "--batch-size", str(BATCH), "--queue-size", "1024"]
    flags += ["--max-minutes", f"{SECONDS / 60:.4f}", "--out", str(out)]
    surroundings = os.environ | {"PYTHONPATH": str(checkout / "src"), "TINYSEED_CACHE": str(cache / "cache")}
    command = [sys.executable, "-c", DRIVER, str(time.time()), str(report), *flags]
    subprocess.run(command, check=True, env=surroundings, capture_output=True)
    return json.loads(report.read_text(encoding="utf-8"))


def described(runs: list[dict], given: argparse.Namespace, *, auto: bool) -> dict[str, float]:
    """Medians of the parts over the turns, and the shares of longer runs computed from them."""

    def median(part: str, at: int = 0) -> float:
        values = [run.get(part, 0.0) for run in runs]
        return statistics.median(value[at] if isinstance(value, list) else value for value in values)

    names = (
        "python",
        "imports",
        "data",
        "teacher",
        "runtime",
        "teacher measured",
        "student moved",
        "digests",
    )
    names += ("lineage", "until the first step", "model", "report")
    side = {name: median(name) for name in names}
    side["first evaluation"], side["last evaluation"] = median("evaluations", 0), median("evaluations", -1)
    side["checkpoint"] = median("checkpoints", -1)
    step = statistics.median(statistics.median(run["steps"]) for run in runs)
    side["step"] = step
    epoch = step * (int(given.images * 0.9) // BATCH)
    side["evaluation, share of an epoch"] = side["last evaluation"] / epoch
    ends = (
        side["until the first step"]
        + side["last evaluation"]
        + side["checkpoint"]
        + side["model"]
        + side["report"]
    )
    for minutes in (1, 10):
        epochs = 60 * minutes / (epoch + (0 if auto else side["last evaluation"] + side["checkpoint"]))
        evaluations, checkpoints = epochs * side["last evaluation"], epochs * side["checkpoint"]
        if auto:
            evaluations, checkpoints = min(evaluations, 3 * minutes), min(checkpoints, 1.2 * minutes)
        side[f"outside, share of {minutes} min"] = (ends + evaluations + checkpoints) / (60 * minutes + ends)
    return side


def commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
