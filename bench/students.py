"""Three students in one run against three runs: time per step.

One run decodes each batch and asks the teacher once. Both sides are the training loop as a whole (decoding, views, both
networks, loss over a full queue, optimizer, queue); they take turns in one process, and ratios are medians over the
turns. "kept targets" is the same run with the teacher's rows at hand, as from the second epoch on where a cache holds
all of them: here a look-up in memory, so that the cost of reading a cache is not in it.

    python bench/students.py [--teacher resnet50] [--batch 64] [--precision 32] [--turns 5]

Photos are the package's own CC0 ones, enlarged to a short side of 256 and written as JPEG once. Adds the teacher's
result to bench/results/students.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.nn.functional import normalize

from common import RESULTS, machine, write_results
from step import Case, enlarged, fill, teacher_with_head
from tinyseed.engine.runs import Runs, open_runs, share_queues
from tinyseed.engine.train import train_step
from tinyseed.methods.seed import SeedSettings
from tinyseed.methods.views import Views
from tinyseed.settings.several import several

STUDENTS = ("resnet18", "mobilenetv3_large_100", "efficientnet_b0")
AIMS = {"resnet50": 0.69, "resnet152": 0.54}
AIM_KEPT = 0.5
SIZE, QUEUE = 224, 65536


class Kept:
    """The teacher's rows of all images, at hand."""

    def __init__(self, images: int, dim: int) -> None:
        self.rows = normalize(torch.randn(images, dim), dim=1)

    def __call__(self, views: Views, place: int = 0) -> torch.Tensor:
        """The rows of these images."""
        return self.rows[views.indices]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="resnet50")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        result = measure(Path(folder), given, held)
    path = RESULTS / "students.json"
    before = json.loads(path.read_text())["results"] if path.exists() else []
    same = (result["teacher"], result["precision"])
    kept = [each for each in before if (each["teacher"], each["precision"]) != same]
    write_results("students", {"machine": machine(), "results": [*kept, result | machine()]})


def measure(folder: Path, given: argparse.Namespace, held: ExitStack) -> dict:
    case = Case("", given.teacher, "", SIZE, given.batch, QUEUE, 0)
    values = {
        "data": (str(enlarged(folder / "large")),),
        "teacher": str(teacher_with_head(case, folder)),
        "image_size": SIZE,
        "batch_size": given.batch,
        "queue_size": QUEUE,
        "precision": given.precision,
        "validation_images": 4,
        "log_every": 10**9,
    }
    together = held.enter_context(
        open_runs(several(SeedSettings, {**values, "out": folder / "together"}, STUDENTS, {}), quiet=True)
    )
    alone = [
        held.enter_context(open_runs({"": of_run}, quiet=True))
        for of_run in several(SeedSettings, {**values, "out": folder / "alone"}, STUDENTS, {}).values()
    ]
    steps_together, *steps_alone = [stepper(runs) for runs in (together, *alone)]
    kept = Kept(len(together.shared.data.source), together.all[0].method.teacher.dim)
    times: dict[str, list[float]] = {"together": [], "kept": [], **{student: [] for student in STUDENTS}}
    for turn in range(given.turns + 1):
        found = {"together": timed(steps_together, given.steps)}
        for student, step in zip(STUDENTS, steps_alone, strict=True):
            found[student] = timed(step, given.steps)
        targets = [run.method.targets for run in together.all]
        for run in together.all:
            run.method.targets = kept
        found["kept"] = timed(steps_together, given.steps)
        for run, own in zip(together.all, targets, strict=True):
            run.method.targets = own
        if turn:  # the first one warms up
            for name, value in found.items():
                times[name].append(value)
    separate = [sum(each) for each in zip(*(times[student] for student in STUDENTS), strict=True)]
    ratio, ratio_kept = (
        statistics.median(one / all_three for one, all_three in zip(times[name], separate, strict=True))
        for name in ("together", "kept")
    )
    seconds = {name: statistics.median(values) for name, values in times.items()}
    precision = together.shared.runtime.precision
    print(
        f"\n{given.teacher}, {SIZE} px, batch {given.batch}, {precision}, {given.turns} turns of {given.steps} steps"
    )
    for name, value in seconds.items():
        print(f"  {name:<22} {value:6.2f} s/step")
    print(f"  one run / three runs   {ratio:6.3f}   aim ≤ {AIMS.get(given.teacher, '–')}")
    print(f"  with kept targets      {ratio_kept:6.3f}   aim ≤ {AIM_KEPT}")
    return {
        "teacher": given.teacher,
        "students": STUDENTS,
        "image_size": SIZE,
        "batch_size": given.batch,
        "precision": precision,
        "turns": given.turns,
        "steps": given.steps,
        "seconds_per_step": seconds,
        "ratio": ratio,
        "aim": AIMS.get(given.teacher),
        "ratio_kept_targets": ratio_kept,
        "aim_kept_targets": AIM_KEPT,
    }


def stepper(runs: Runs):
    """A step of all runs, as the training loop takes it, over full queues."""
    for run in runs.all:
        fill(run)
    share_queues(runs.all)
    batches = runs.batches()

    def step() -> None:
        going = runs.together
        for run, outputs in zip(going, train_step(going, batches), strict=True):
            run.took(outputs)

    return step


def timed(step, repetitions: int) -> float:
    began = time.perf_counter()
    for _ in range(repetitions):
        step()
    return (time.perf_counter() - began) / repetitions


if __name__ == "__main__":
    main()
