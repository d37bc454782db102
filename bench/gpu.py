"""Everything about a GPU in one call of at most 8 minutes: the loop, its parts, host synchronization, memory, DDP.

    python bench/gpu.py [--minutes 8]         # on a machine with a GPU; writes bench/results/gpu.json
    python bench/gpu.py --smoke --out FOLDER  # the same code on tiny sizes, on the CPU, to see that it runs

Loop and bare networks are timed in turns in one process, as in bench/step.py; medians over the turns. What does not fit
into the time is listed as skipped.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize as unit

from common import machine
from step import Case, enlarged, fill, teacher_with_head
from tinyseed.assets import clothing
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.draws import draw_view
from tinyseed.data.loader import Plan, TrainingViews, training_batches
from tinyseed.data.render import render_view
from tinyseed.data.sources import open_source
from tinyseed.engine.run import Run
from tinyseed.engine.runs import Runs, open_runs
from tinyseed.engine.train import train_step
from tinyseed.methods.seed import SeedSettings
from tinyseed.objectives.seed import seed_terms
from tinyseed.threads import usable_cores

Steps = Callable[[], object]


@dataclass(frozen=True)
class Scale:
    """How large everything is: as on a GPU, or as small as it can be."""

    cases: tuple[Case, ...]
    turns: int
    steps: int
    loss: tuple[tuple[int, int, int], ...]
    views: tuple[tuple[int, int], ...]
    workers: tuple[int, ...]
    decoded_batches: int
    command_minutes: float


GPU = Scale(
    cases=(
        Case("64 px, ResNet-50 to ResNet-18", "resnet50", "resnet18", 64, 512, 65536, 1.5),
        Case("224 px, ResNet-50 to ResNet-18", "resnet50", "resnet18", 224, 256, 65536, 1.25),
        Case("224 px, ViT-B/14 to ResNet-18", "vit_base_patch14_dinov2", "resnet18", 224, 256, 65536, 1.25),
    ),
    turns=5,
    steps=10,
    loss=((256, 128, 65536), (256, 2048, 65536)),
    views=((64, 512), (224, 256)),
    workers=(1, 2, 4, 8, 16),
    decoded_batches=12,
    command_minutes=0.5,
)
SMOKE = Scale(
    cases=(Case("32 px, ResNet-10t to MobileNetV3", "resnet10t", "mobilenetv3_small_050", 32, 8, 64, 9),),
    turns=1,
    steps=1,
    loss=((4, 16, 64),),
    views=((32, 8),),
    workers=(0, 1),
    decoded_batches=2,
    command_minutes=0.05,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, without a GPU")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if not given.smoke and not torch.cuda.is_available():
        sys.exit("bench/gpu.py: no GPU; --smoke runs the same code on the CPU")
    scale = SMOKE if given.smoke else GPU
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / ("gpu-smoke.json" if given.smoke else "gpu.json")
    deadline = time.monotonic() + 60 * given.minutes
    results = {"machine": machine(), "cores": usable_cores()}
    with tempfile.TemporaryDirectory() as name:
        for title, section in sections(scale, Path(name)).items():
            began = time.monotonic()
            results[title] = section() if began < deadline else "skipped: no time left"
            print(f"{title} ({time.monotonic() - began:.0f} s): {json.dumps(results[title])}", flush=True)
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")  # what there is so far
    print(f"written: {path}")


def sections(scale: Scale, folder: Path) -> dict[str, Callable[[], object]]:
    """The measurements by their names, the most important first."""
    cases = {f"loop: {case.name}": lambda case=case: loop(case, scale, folder) for case in scale.cases}
    return {
        **cases,
        "loss, ms": lambda: [loss(*sizes, scale) for sizes in scale.loss],
        "views, ms": lambda: [views(*sizes, scale) for sizes in scale.views],
        "decoding, images/s": lambda: decoding(scale, folder),
        "processes, images/s": lambda: processes(scale, folder),
    }


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds(work: Steps, repetitions: int) -> float:
    """Of one repetition, after everything before has ended, until it has ended itself."""
    wait()
    began = time.perf_counter()
    for _ in range(repetitions):
        work()
    wait()
    return 1000 * (time.perf_counter() - began) / repetitions


def median_ms(work: Steps, scale: Scale) -> float:
    work()
    return statistics.median(milliseconds(work, scale.steps) for _ in range(scale.turns))


def photos(case_size: int, folder: Path) -> Path:
    return enlarged(folder / "large") if case_size > 64 else clothing("train")


def loop(case: Case, scale: Scale, folder: Path) -> dict:
    """The training loop beside its bare networks; waiting for data, memory, synchronization, cuDNN's search."""
    settings = SeedSettings(
        data=(str(photos(case.size, folder)),),
        out=folder / case.name.replace(" ", "-").replace("/", "-"),
        teacher=str(teacher_with_head(case, folder)),
        student=case.student,
        image_size=case.size,
        batch_size=case.batch,
        queue_size=case.queue,
        devices="1",
        validation_images=16,
        log_every=10**9,
    )
    with open_runs({"": settings}, quiet=True) as runs:
        (run,) = runs.all
        fill(run)
        batches = runs.batches()
        bare = bare_step(run, case)
        step = lambda: run.took(*train_step([run], batches))  # noqa: E731
        for work in (step, bare, step, bare):
            work()
        whole_ms, bare_ms, waited = [], [], []
        for _ in range(scale.turns):
            run.log.restart()
            whole_ms.append(milliseconds(step, scale.steps))
            waited.append(1000 * run.log.waited / scale.steps)
            bare_ms.append(milliseconds(bare, scale.steps))
        found = {
            "images": case.batch,
            "precision": run.settings.precision,
            "workers": run.settings.workers,
            "step_ms": statistics.median(whole_ms),
            "bare_ms": statistics.median(bare_ms),
            "ratio": statistics.median(a / b for a, b in zip(whole_ms, bare_ms, strict=True)),
            "aim": case.aim,
            "waiting_for_data_ms": statistics.median(waited),
            "step_peak_mb": peak_mb(step),
            "bare_peak_mb": peak_mb(bare),
            "host_waits_per_step": host_waits(runs, scale),
        }
        found["teacher_ms"], found["teacher_graph_ms"] = teacher_times(run, case, scale)
        with searching_algorithms():
            found["bare_ms_cudnn_benchmark"] = median_ms(bare, scale)
        return found


def bare_step(run: Run, case: Case) -> Steps:
    """Both networks and the optimizer on a ready batch, without loss over a queue."""
    images = torch.randn(case.batch, 3, case.size, case.size, device=run.runtime.device)
    images = images.to(memory_format=torch.channels_last)
    teacher = run.method.teacher
    assert teacher is not None

    def step() -> None:
        with run.runtime.autocast():
            teacher(images)
            loss = run.learner.forward(images).float().mean()
        run.runtime.fabric.backward(loss)
        run.learner.optimizer.step()
        run.learner.optimizer.zero_grad(set_to_none=True)

    return step


def teacher_times(run: Run, case: Case, scale: Scale) -> tuple[float, float | None]:
    """The frozen teacher as it is called, and recorded as a CUDA graph: what that would save."""
    size = run.method.teacher.input.size
    images = torch.randn(case.batch, 3, size, size, device=run.runtime.device)
    images = images.to(memory_format=torch.channels_last)
    dtype = run.runtime.autocast_dtype
    # a graph must not hold casts of weights that autocast would free
    context = torch.autocast(images.device.type, dtype, enabled=dtype is not None, cache_enabled=False)

    def teacher() -> None:
        with context:
            run.method.teacher(images)

    plain = median_ms(teacher, scale)
    if not torch.cuda.is_available():
        return plain, None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        teacher()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        teacher()
    return plain, median_ms(graph.replay, scale)


def peak_mb(work: Steps) -> float | None:
    """Peak of allocated GPU memory in a step."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    wait()
    return torch.cuda.max_memory_allocated() / 1e6


def host_waits(runs: Runs, scale: Scale) -> dict[str, float] | None:
    """How often the host waits for the GPU in a step, by the place in the code; {} is the aim, None: no GPU."""
    (run,) = runs.all
    batches = iter(list(islice(runs.batches(), scale.steps)))
    if not torch.cuda.is_available():
        return None
    wait()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(scale.steps):
                run.took(*train_step([run], batches))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = collections.Counter(
        f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)
    )
    return {place: count / scale.steps for place, count in places.items()}


@contextmanager
def searching_algorithms():
    """CuDNN tries its algorithms and takes the fastest; off by default, since a resumed run may then choose another."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def loss(images: int, dim: int, rows: int, scale: Scale) -> dict:
    """SEED's loss and its gradient, beside the plain formula with its [n, k] matrices."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, queue = (
        unit(torch.randn(count, dim, generator=generator), dim=1).to(device())
        for count in (images, images, rows)
    )
    student.requires_grad_()

    def ours() -> None:
        terms = seed_terms(student, teacher, queue, student_temperature=0.2, teacher_temperature=0.01)
        terms.loss.backward()

    def plain() -> None:
        own = (student * teacher).sum(1, keepdim=True)
        scores = torch.cat([own, student @ queue.T], 1) / 0.2
        target = torch.cat([torch.ones_like(own), teacher @ queue.T], 1).div(0.01).softmax(1)
        nn.functional.cross_entropy(scores, target).backward()

    return {
        "images": images,
        "dim": dim,
        "rows": rows,
        "ours_ms": median_ms(ours, scale),
        "plain_ms": median_ms(plain, scale),
        "ours_peak_mb": peak_mb(ours),
        "plain_peak_mb": peak_mb(plain),
    }


def views(size: int, images: int, scale: Scale) -> dict:
    """Color, blur and flips of a batch on the device."""
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8).to(device())
    draws = draw_view(ViewSettings(), 0, 0, torch.arange(images).numpy(), 0).to(device())
    return {"size": size, "images": images, "ms": median_ms(lambda: render_view(pixels, draws), scale)}


def decoding(scale: Scale, folder: Path) -> list[dict]:
    """Batches as they come from worker processes, pinned, while nothing else computes."""
    case = scale.cases[-1]
    source = open_source([str(photos(case.size, folder))])
    images = torch.arange(len(source)).numpy()
    loaded = TrainingViews(source, (View(ViewSettings(), case.size),), 0, images)
    found = []
    for workers in scale.workers:
        if workers > 2 * usable_cores():
            continue
        plan = Plan(images, case.batch, seed=0)
        pin = torch.cuda.is_available()
        batches = training_batches(loaded, plan, first_step=0, workers=workers, pin_memory=pin)
        list(islice(batches, max(1, workers)))  # the workers have started
        began = time.perf_counter()
        list(islice(batches, scale.decoded_batches))
        speed = case.batch * scale.decoded_batches / (time.perf_counter() - began)
        batches.close()
        found.append({"workers": workers, "size": case.size, "images_per_s": speed})
    return found


def processes(scale: Scale, folder: Path) -> dict[str, float]:
    """The whole command on one GPU and on all of them, with the same batch per GPU."""
    case, found = scale.cases[0], {}
    available = torch.cuda.device_count()
    for count in sorted({1, max(1, available)}):
        out = folder / f"processes-{count}"
        flags = {
            "data": clothing("train"),
            "out": out,
            "teacher": teacher_with_head(case, folder),
            "student": case.student,
            "image-size": case.size,
            "batch-size": case.batch * count,
            "devices": count,
            "max-minutes": scale.command_minutes,
            "validation-images": 16,
            "evaluate-every": 10**6,
            "log-every": 1,
        }
        typed = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        subprocess.run([sys.executable, "-m", "tinyseed", "distill", *typed], check=True, capture_output=True)
        lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
        found[str(count)] = statistics.median(speeds[len(speeds) // 2 :])
    return found


if __name__ == "__main__":
    main()
