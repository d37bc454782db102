"""How the cost of training grows: with batch, queue, dimension, image size, number of images and students.

    python bench/scaling.py [--repeats 3] [--axis NAME]

- batch, image size: milliseconds of the whole training step (ResNet-18 to MobileNetV3-small 0.5), without workers;
- students: milliseconds of a step that trains this many settings of one student under one teacher;
- queue, dimension: milliseconds of the loss with its gradient and the push into the queue, 128 images;
- images: what an epoch costs beside its steps on a simulated source, which only has a length: the split at the start,
  the first batch's plan (the permutation) and all batches' plans, and the memory for it;
- files: listing a folder of empty files for the first time (a million: listing.py).

Cost ≈ constant · size^exponent: the exponent by least squares of the logarithms over the range, and that of the last
step alone, which shows where a constant part has been left behind. Medians; sizes of an axis take turns within each
repetition. About 5 minutes on two cores. Writes bench/results/scaling.json.
"""

import argparse
import dataclasses
import math
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from common import machine, write_results
from step import enlarged
from tinyseed.assets import CLOTHING_TEACHER, clothing
from tinyseed.data.loader import Plan
from tinyseed.data.sources import open_source
from tinyseed.data.split import held_out_split, sample
from tinyseed.engine.runs import open_runs
from tinyseed.engine.train import train_step
from tinyseed.methods.seed import SeedSettings
from tinyseed.objectives.queue import Queue
from tinyseed.objectives.seed import seed_loss

BATCHES = (32, 64, 128, 256, 512)
SIDES = (32, 64, 96, 128, 160, 224)
STUDENTS = (1, 2, 4, 8)
QUEUES = (1024, 4096, 16384, 65536, 262144)
DIMS = (64, 128, 256, 512, 1024, 2048)
IMAGES = (10_000, 100_000, 1_000_000, 10_000_000)
FILES = (1_000, 10_000, 100_000)
N = 128

Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--axis", default="", help="only axes whose name contains this")
    given = parser.parse_args()
    axes: dict[str, Callable[[Path, int], dict]] = {
        "batch": by_batch,
        "image size": by_side,
        "students": by_students,
        "queue": by_queue,
        "dimension": by_dimension,
        "images": by_images,
        "files": by_files,
    }
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TINYSEED_CACHE"] = f"{folder}/cache"
        for name, measure in axes.items():
            if given.axis in name:
                results[name] = measure(Path(folder), given.repeats)
                show(name, results[name])
    if not given.axis:
        write_results("scaling", {"machine": machine(), "results": results})


def by_batch(folder: Path, repeats: int) -> dict:
    """The whole step at 64 px."""
    with ExitStack() as stack:
        works = {batch: whole_step(stack, folder, batch=batch, side=64) for batch in BATCHES}
        return fitted("ms per step", timed(works, repeats, 2))


def by_side(folder: Path, repeats: int) -> dict:
    """The whole step with 32 images, from JPEGs of a short side of 256."""
    with ExitStack() as stack:
        works = {side: whole_step(stack, folder, batch=32, side=side) for side in SIDES}
        return fitted("ms per step of 32", timed(works, repeats, 2))


def by_students(folder: Path, repeats: int) -> dict:
    """The whole step at 64 px with several settings of a student."""
    with ExitStack() as stack:
        works = {count: whole_step(stack, folder, batch=128, side=64, students=count) for count in STUDENTS}
        return fitted("ms per step", timed(works, repeats, 2))


def whole_step(stack: ExitStack, folder: Path, *, batch: int, side: int, students: int = 1) -> Work:
    """A step of a training run; the run ends with the stack."""
    settings = SeedSettings(
        data=(str(clothing("train") if side == 64 else enlarged(folder / "large")),),
        out=Path(tempfile.mkdtemp(dir=folder)) / "run",
        teacher=str(CLOTHING_TEACHER),
        student="mobilenetv3_small_050",
        image_size=side,
        batch_size=batch,
        queue_size=1024,
        validation_images=16,
        log_every=10**9,
    )
    several = {
        str(number): settings.replaced(out=settings.out / str(number), student_temperature=0.2 + number / 100)
        for number in range(students)
    }
    runs = stack.enter_context(open_runs(several, quiet=True))
    batches = runs.batches()
    stack.callback(batches.close)

    def step() -> None:
        for run, outputs in zip(runs.all, train_step(runs.all, batches), strict=True):
            run.took(outputs)

    return step


def by_queue(folder: Path, repeats: int) -> dict:
    """The loss over queues of dimension 128."""
    del folder
    return fitted("ms", timed({rows: loss_work(rows, 128) for rows in QUEUES}, repeats, 2))


def by_dimension(folder: Path, repeats: int) -> dict:
    """The loss over a queue of 65,536 rows."""
    del folder
    return fitted("ms", timed({dim: loss_work(65536, dim) for dim in DIMS}, repeats, 1))


def loss_work(rows: int, dim: int) -> Work:
    """Loss, gradient and push of a batch over a full queue; made when it is first called, freed after each call."""

    def work() -> float:
        generator = torch.Generator().manual_seed(0)
        queue = Queue(rows, dim)
        queue.push(normalize(torch.randn(rows, dim, generator=generator), dim=1))
        teacher = normalize(torch.randn(N, dim, generator=generator), dim=1)
        student = normalize(teacher + 0.3 * torch.randn(N, dim, generator=generator) / dim**0.5, dim=1)
        student.requires_grad_()
        spent = []
        for _ in range(3):
            began = time.perf_counter()
            seed_loss(student, teacher, queue.rows()).backward()
            queue.push(teacher)
            spent.append(time.perf_counter() - began)
        return min(spent[1:])

    return work


@dataclasses.dataclass(frozen=True)
class Simulated:
    """As much of a source as planning an epoch looks at."""

    images: int

    def __len__(self) -> int:
        return self.images


def by_images(folder: Path, repeats: int) -> dict:
    """Split, first plan, all plans of an epoch, and the memory that this takes; once, since ten million take long."""
    del folder, repeats
    times: dict[int, list[float]] = {images: [] for images in IMAGES}
    parts: dict[int, dict[str, float]] = {}
    for images in IMAGES:
        parts[images] = planned(Simulated(images))
        times[images].append(1000 * sum(parts[images].values()))
    result = fitted("ms per epoch", times)
    tracemalloc.start()
    for point in result["points"]:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        planned(Simulated(point["size"]))
        point["memory_mib"] = (tracemalloc.get_traced_memory()[1] - before) / 2**20
        point |= {f"{name}_ms": 1000 * value for name, value in parts[point["size"]].items()}
    tracemalloc.stop()
    return result


def planned(source: Simulated) -> dict[str, float]:
    """Seconds of what is done before and between the steps of an epoch."""
    began = time.perf_counter()
    training, held_out = held_out_split(len(source), 0)
    sample(held_out, 1024, 0, "validation")
    sample(training, 4096, 0, "bank")
    split = time.perf_counter()
    plan = Plan(images=training, batch_size=256, seed=0)
    requests = plan.requests(0)
    next(requests)
    first = time.perf_counter()
    for _ in range(plan.steps_per_epoch - 1):
        next(requests)
    return {"split": split - began, "order": first - split, "batches": time.perf_counter() - first}


def by_files(folder: Path, repeats: int) -> dict:
    """The first listing of a folder."""
    times: dict[int, list[float]] = {}
    for files in FILES:
        root = folder / f"files-{files}"
        for number in range(0, files, 1000):
            place = root / f"{number // 1000:05}"
            place.mkdir(parents=True)
            for each in range(number, min(number + 1000, files)):
                os.mknod(place / f"{each:08}.jpg")
        times[files] = []
        for repeat in range(repeats):
            os.environ["TINYSEED_CACHE"] = str(folder / f"cache-{files}-{repeat}")
            began = time.perf_counter()
            assert len(open_source([str(root)])) == files
            times[files].append(1000 * (time.perf_counter() - began))
    return fitted("ms", times)


def timed(works: dict[int, Work], repeats: int, calls: int) -> dict[int, list[float]]:
    """Milliseconds per call of each size, in turns; a work that returns a number has timed itself."""
    times: dict[int, list[float]] = {size: [] for size in works}
    for repeat in range(repeats + 1):
        for size, work in works.items():
            began = time.perf_counter()
            measured = [work() for _ in range(calls)]
            each = (time.perf_counter() - began) / calls
            if isinstance(measured[-1], float):
                each = statistics.median(value for value in measured if isinstance(value, float))
            if repeat:  # the first warms up
                times[size].append(1000 * each)
    return times


def fitted(unit: str, times: dict[int, list[float]]) -> dict:
    """Medians by size, and the exponents."""
    sizes, costs = list(times), [statistics.median(values) for values in times.values()]
    slope, _ = np.polyfit(np.log(sizes), np.log(costs), 1)
    last = math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])
    points = [
        {"size": size, "cost": cost, "all": times[size]} for size, cost in zip(sizes, costs, strict=True)
    ]
    return {"unit": unit, "points": points, "exponent": float(slope), "exponent_of_last_step": last}


def show(name: str, result: dict) -> None:
    points: Sequence[dict] = result["points"]
    print(
        f"\n{name}, {result['unit']}: exponent {result['exponent']:.2f} over {points[0]['size']:,} to ",
        end="",
    )
    print(f"{points[-1]['size']:,}, {result['exponent_of_last_step']:.2f} in the last step")
    for point in points:
        memory = f"   {point['memory_mib']:9.1f} MiB" if "memory_mib" in point else ""
        print(f"  {point['size']:>12,} {point['cost']:12.2f}{memory}", flush=True)


if __name__ == "__main__":
    main()
