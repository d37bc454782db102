"""Which share of what the processor can do each part of a training step reaches.

    python bench/roofline.py [--repeats 5]

Peaks are measured, not looked up: products of 2,048² matrices in float32 and bfloat16, and copying 256 MiB (read and
written bytes). Then, for the cases of step.py, each part alone on ready inputs: networks and loss by their floating
point operations (a multiplication and an addition count as two; of the loss those of its two look-ups), views,
normalization, queue and optimizer by the bytes that they have to read and write at least. Medians. What neither peak
explains is latency, Python, or work that is not counted. Writes bench/results/roofline.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import machine, write_results
from step import CASES, Case, fill, settings_of
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD, normalize, render_view
from tinyseed.engine.runs import Runs, open_runs
from tinyseed.objectives.seed import seed_loss
from tinyseed.precision import native_bf16

Work = Callable[[], object]


@dataclass(frozen=True)
class Part:
    """One part of a step: its work, and what it has to do at least."""

    name: str
    work: Work
    operations: float = 0
    moved: float = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    given = parser.parse_args()
    peaks = measured_peaks(given.repeats)
    print(", ".join(f"{name} {value:.1f}" for name, value in peaks.items()))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if given.case in case.name:
                results.append(measure(case, Path(folder), given.repeats, peaks))
    if not given.case:
        write_results("roofline", {"machine": machine(), "peaks": peaks, "results": results})


def measured_peaks(repeats: int) -> dict[str, float]:
    """GFLOP/s of matrix products, GB/s of a copy."""
    n, peaks = 2048, {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        first, second = (torch.randn(n, n).to(dtype) for _ in range(2))
        peaks[f"{name} GFLOP/s"] = 2 * n**3 / seconds(lambda a=first, b=second: a @ b, repeats) / 1e9
    block, copy = torch.zeros(2**26), torch.zeros(2**26)
    peaks["memory GB/s"] = 2 * 4 * 2**26 / seconds(lambda: copy.copy_(block), repeats) / 1e9
    return peaks


def measure(case: Case, folder: Path, repeats: int, peaks: dict[str, float]) -> dict:
    settings = settings_of(case, folder)
    kind = "bfloat16" if native_bf16(on_gpu=False) else "float32"
    rows = []
    with open_runs({"": settings}, quiet=True) as runs:
        fill(runs.all[0])
        for part in parts(runs, case):
            spent = seconds(part.work, repeats)
            row = {"part": part.name, "ms": 1000 * spent}
            if part.operations:
                peak = peaks["float32 GFLOP/s" if part.name == "loss" else f"{kind} GFLOP/s"]
                row |= {"gflop_per_s": part.operations / spent / 1e9}
                row["share_of_peak"] = row["gflop_per_s"] / peak
            else:
                row |= {"gb_per_s": part.moved / spent / 1e9}
                row["share_of_peak"] = row["gb_per_s"] / peaks["memory GB/s"]
            rows.append(row)
    print(f"\n{case.name}, {kind}, batch {case.batch}, queue {case.queue:,}")
    for row in rows:
        rate = (
            f"{row['gflop_per_s']:8.1f} GFLOP/s"
            if "gflop_per_s" in row
            else f"{row['gb_per_s']:8.1f} GB/s   "
        )
        print(f"  {row['part']:28}{row['ms']:9.2f} ms {rate} {100 * row['share_of_peak']:5.0f} % of the peak")
    return {"case": case.name, "networks_in": kind, "parts": rows}


def parts(runs: Runs, case: Case) -> list[Part]:
    """The main process' parts of a step; backward is timed together with the forward pass before it."""
    (run,) = runs.all
    batch = next(runs.batches())
    pixels, draws = batch.pixels[0], batch.draws[0]
    view = render_view(pixels, draws)
    images = normalize(view, IMAGENET_MEAN, IMAGENET_STD)
    teacher, learner, queue = run.method.teacher, run.learner, run.method.queue
    rows = teacher(images)
    student = nn.functional.normalize(torch.randn_like(rows), dim=1).requires_grad_()

    def look() -> torch.Tensor:
        with run.runtime.autocast():
            return teacher(images)

    def forward() -> torch.Tensor:
        with run.runtime.autocast():
            return learner.forward(images).float().mean()

    def both() -> None:
        run.runtime.fabric.backward(forward())
        learner.optimizer.zero_grad(set_to_none=True)

    def update() -> None:
        for parameter in trained:
            parameter.grad = gradients[parameter]
        learner.optimizer.step()

    trained = [parameter for parameter in run.method.module.parameters() if parameter.requires_grad]
    gradients = {parameter: torch.zeros_like(parameter) for parameter in trained}
    weights = 4 * sum(parameter.numel() for parameter in trained)
    floats, rows_bytes = 4 * view.numel(), 4 * rows.numel()
    lookups = 2 * 2 * 2 * case.batch * case.queue * teacher.dim  # scores and means, for student and teacher
    run.method.module.train()
    return [
        # counted on the network as it is: packed layers are not known to the counter
        Part("teacher", look, operations=operations(lambda: teacher.backbone(images))),
        Part("student, forward", forward, operations=operations(forward)),
        Part("student, forward and backward", both, operations=operations(both)),
        Part("loss", lambda: seed_loss(student, rows, queue.rows()).backward(), operations=lookups),
        Part("views", lambda: render_view(pixels, draws), moved=pixels.numel() + floats),
        Part("normalize", lambda: normalize(view, IMAGENET_MEAN, IMAGENET_STD), moved=2 * floats),
        Part("optimizer", update, moved=5 * weights),  # reads weight, gradient, momentum; writes two of them
        Part("queue", lambda: queue.push(rows), moved=2 * rows_bytes),
    ]


def operations(work: Work) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds(work: Work, repeats: int) -> float:
    work()
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
