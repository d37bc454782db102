"""What the whole distillation loop costs beside the bare networks.

The loop: reading, decoding, crops (in worker processes), color and blur, both networks, loss over a full queue,
optimizer, queue. Bare: the same two networks, backward and the same optimizer on one batch of ready tensors in memory,
same precision and memory format, without loss over a queue (the loss is the student's mean output). Both are timed in
one process in turns; medians over the turns.

    python bench/step.py [--turns 7] [--steps 8] [--case NAME]

Photos are the package's own CC0 ones; for 224 px they are enlarged to a short side of 256 and written as JPEG once.
Writes bench/results/step.json.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from common import machine, write_results
from tinyseed.assets import clothing
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.data.decode import decode
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD, normalize, render_view
from tinyseed.data.sources import open_source
from tinyseed.engine.run import Run
from tinyseed.engine.runs import Runs, open_runs
from tinyseed.engine.train import train_step
from tinyseed.methods.seed import SeedSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.objectives.seed import seed_terms


@dataclass(frozen=True)
class Case:
    """Two networks at a size."""

    name: str
    teacher: str
    student: str
    size: int
    batch: int
    queue: int
    aim: float


CASES = [
    Case("64 px, ResNet-50 to ResNet-18", "resnet50", "resnet18", 64, 128, 65536, 1.5),
    Case(
        "64 px, ResNet-18 to MobileNetV3-small 0.5", "resnet18", "mobilenetv3_small_050", 64, 128, 1024, 1.5
    ),
    Case("224 px, ResNet-50 to ResNet-18", "resnet50", "resnet18", 224, 32, 65536, 1.25),
]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--turns", type=int, default=7)
    arguments.add_argument("--steps", type=int, default=8)
    arguments.add_argument("--case", default="", help="only cases whose name contains this")
    arguments.add_argument("--workers", default="auto")
    given = arguments.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if given.case in case.name:
                results.append(measure(case, Path(folder), given))
    if not given.case:
        write_results("step", {"machine": machine(), "results": results})


def measure(case: Case, folder: Path, given: argparse.Namespace) -> dict:
    turns, steps = given.turns, given.steps
    workers = given.workers if given.workers == "auto" else int(given.workers)
    settings = settings_of(case, folder, workers=workers)
    with open_runs({"": settings}, quiet=True) as runs:
        return compare(runs, case, turns, steps)


def settings_of(case: Case, folder: Path, **changes) -> SeedSettings:
    """The run of a case on the package's photos, in a folder named after it."""
    given = {
        "data": (str(enlarged(folder / "large") if case.size > 64 else clothing("train")),),
        "out": folder / case.name.replace(" ", "-").replace("/", "-"),
        "teacher": str(teacher_with_head(case, folder)),
        "student": case.student,
        "image_size": case.size,
        "batch_size": case.batch,
        "queue_size": case.queue,
        "validation_images": 16,
        "log_every": 10**9,
    }
    return SeedSettings(**(given | changes))


def compare(runs: Runs, case: Case, turns: int, steps: int) -> dict:
    """Steps of the training loop and bare steps of its networks, in turns."""
    (run,) = runs.all
    fill(run)
    batches = runs.batches()
    bare = bare_step(run, case)

    def step() -> None:
        run.took(*train_step([run], batches))

    for _ in range(3):
        step()
        bare()
    whole_times, bare_times, waited = [], [], []
    for _ in range(turns):
        run.log.restart()
        whole_times.append(timed(step, steps) / case.batch)
        waited.append(run.log.waited / steps / case.batch)
        bare_times.append(timed(bare, steps) / case.batch)
    parts = dissect(runs, batches, steps, case)
    whole, base = statistics.median(whole_times), statistics.median(bare_times)
    print(
        f"\n{case.name}  (batch {case.batch}, queue {case.queue:,}, {run.settings.precision}, "
        f"{run.settings.workers} workers)"
    )
    print(f"  whole loop   {1000 * whole:7.3f} ms/image   {1 / whole:7.0f} img/s")
    print(f"  bare nets    {1000 * base:7.3f} ms/image   {1 / base:7.0f} img/s")
    print(f"  ratio        {whole / base:7.3f}            aim ≤ {case.aim}")
    print(f"  waiting for data {1000 * statistics.median(waited):.3f} ms/image; " + parts_line(parts))
    return {
        "case": case.name,
        "whole_ms_per_image": 1000 * whole,
        "bare_ms_per_image": 1000 * base,
        "ratio": whole / base,
        "aim": case.aim,
        "waiting_ms_per_image": 1000 * statistics.median(waited),
        "parts_ms_per_image": parts,
    }


def teacher_with_head(case: Case, folder: Path) -> Path:
    """A teacher of random weights with MoCo-v2's 128-dimensional head, saved as a run leaves it."""
    path = folder / f"teacher-{case.teacher}"
    if not path.exists():
        backbone = build_backbone(case.teacher, seed=0)
        encoder = Encoder(backbone, build_projector("mlp", backbone.width, 128, seed=1))
        save_encoder(path, encoder, file="encoder.safetensors")
    return path


def parts_line(parts: dict[str, float]) -> str:
    return "alone in the main process, ms/image: " + ", ".join(
        f"{name} {value:.3f}" for name, value in parts.items()
    )


def enlarged(folder: Path) -> Path:
    """1,024 of the package's photos with a short side of 256, as JPEG files."""
    if not folder.exists():
        folder.mkdir(parents=True)
        source = open_source([str(clothing("train"))])
        for index in range(1024):
            photo = decode(source.read(index))
            scale = 256 / min(photo.size)
            size = (round(photo.width * scale), round(photo.height * scale))
            photo.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg", quality=90)
    return folder


def fill(run: Run) -> None:
    """A full queue from the first step on."""
    queue = run.method.queue
    generator = torch.Generator().manual_seed(0)
    while len(queue) < queue.size:
        queue.push(
            nn.functional.normalize(torch.randn(8192, queue.dim, generator=generator), dim=1)[: queue.size]
        )


def bare_step(run: Run, case: Case):
    """Both networks and the optimizer on ready tensors."""
    images = torch.rand(case.batch, 3, case.size, case.size).to(memory_format=torch.channels_last)
    images = (images - 0.45) / 0.225

    def step() -> None:
        with run.runtime.autocast():
            run.method.teacher(images)
            loss = run.learner.forward(images).float().mean()
        run.runtime.fabric.backward(loss)
        run.learner.optimizer.step()
        run.learner.optimizer.zero_grad(set_to_none=True)

    return step


def timed(step, repetitions: int) -> float:
    began = time.perf_counter()
    for _ in range(repetitions):
        step()
    return (time.perf_counter() - began) / repetitions


def dissect(runs: Runs, batches, steps: int, case: Case) -> dict[str, float]:
    """Each part of the main process' work by itself, after its inputs are ready."""
    (run,) = runs.all
    batch = next(batches)
    view = render_view(batch.pixels[0], batch.draws[0])
    student = nn.functional.normalize(torch.randn(case.batch, run.method.teacher.dim), dim=1).requires_grad_()
    teacher = nn.functional.normalize(torch.randn(case.batch, run.method.teacher.dim), dim=1)

    def loss() -> None:
        terms = seed_terms(
            student, teacher, run.method.queue.rows(), student_temperature=0.2, teacher_temperature=0.01
        )
        terms.loss.backward()

    works = {
        "color, blur, flip": lambda: render_view(batch.pixels[0], batch.draws[0]),
        "normalize": lambda: normalize(view, IMAGENET_MEAN, IMAGENET_STD),
        "loss": loss,
        "queue": lambda: run.method.queue.push(teacher),
    }
    parts = {}
    for name, work in works.items():
        work()
        parts[name] = 1000 * timed(work, steps) / case.batch
    views = runs.views
    request = next(run.plan.requests(0))
    views.batch(request)
    parts["read, decode, crop (worker)"] = 1000 * timed(lambda: views.batch(request), 3) / case.batch
    return parts


if __name__ == "__main__":
    main()
