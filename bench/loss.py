"""SEED's loss by two look-ups beside the direct formula: time and memory, forward and backward, in one run.

    python bench/loss.py                                  n 256 and 1,024, k 65,536, d 128, float32, noise
    python bench/loss.py --images 32 256 --dims 768 2048 --features features.pt --no-memory --repeats 3

The direct formula is what anyone would write: the own score beside the queue's, two [n, k + 1] matrices, softmax,
log-softmax, autograd; vectors are divided by the temperature before the product, the faster way. "all rows" is
tinyseed without leaving out rows that carry no weight, where it would (above 512 dimensions).

Features: noise, or a file from bench/features.py, whose rows are the queue and whose queries are other images; the
student is the teacher with noise of half its length.

Time: the sides take turns within each repetition, so that other load on the machine meets them alike; the table has
medians, and the median of the ratios within a repetition. The matrix peak is the best float32 product of two
4,096 × 4,096 matrices seen between the repetitions; the share of it counts the look-ups' four products, 8 n k d (what
is left out counts, too, so it can be above 1).

Memory: each side runs once in a fresh process, after its inputs exist and after a call on 8 images, which starts
threads and buffers. Extra memory is the rise of the process' peak resident size (VmHWM, set back by
/proc/self/clear_refs just before the call) over its resident size just before: Linux only.

Imports tinyseed.objectives only. Prints a table and writes JSON.
"""

import argparse
import itertools
import json
import multiprocessing
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tinyseed.objectives import streaming
from tinyseed.objectives.kernels import MAX_DIM
from tinyseed.objectives.seed import seed_loss

STUDENT_TEMPERATURE = 0.2
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """What is measured: n, k, d, τ_T, and a file of features or noise."""

    images: int
    rows: int
    dim: int
    teacher_temperature: float
    features: Path | None


def direct_loss(student: Tensor, teacher: Tensor, rows: Tensor, teacher_temperature: float) -> Tensor:
    """The definition of the loss."""
    queries, targets = student / STUDENT_TEMPERATURE, teacher / teacher_temperature
    own = (queries * teacher).sum(1, keepdim=True)
    log_student = torch.cat([own, queries @ rows.T], 1).log_softmax(1)
    own = (targets * teacher).sum(1, keepdim=True)
    target = torch.cat([own, targets @ rows.T], 1).softmax(1)
    return -(target * log_student).sum(1).mean()


def tinyseed_loss(student: Tensor, teacher: Tensor, rows: Tensor, teacher_temperature: float) -> Tensor:
    """Ours."""
    return seed_loss(student, teacher, rows, teacher_temperature=teacher_temperature)


def all_rows(student: Tensor, teacher: Tensor, rows: Tensor, teacher_temperature: float) -> Tensor:
    """Ours, without leaving out rows."""
    fewest, streaming.SELECT_FROM = streaming.SELECT_FROM, len(rows) + 1
    try:
        return tinyseed_loss(student, teacher, rows, teacher_temperature)
    finally:
        streaming.SELECT_FROM = fewest


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "direct": direct_loss,
    "all rows": all_rows,
    "tinyseed": tinyseed_loss,
}


@dataclass(frozen=True)
class Result:
    """The sides at one size: seconds, MiB, and how far the results are apart."""

    images: int
    rows: int
    dim: int
    teacher_temperature: float
    features: str
    direct_s: float
    all_rows_s: float | None
    tinyseed_s: float
    speedup: float
    speedup_by_leaving_out: float | None
    direct_mib: float | None
    tinyseed_mib: float | None
    matrix_peak_gflops: float
    share_of_peak: float
    loss_difference: float
    gradient_difference: float


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors; the rows are made in place, so that no temporary raises the process' peak."""
    torch.manual_seed(0)
    if case.features is None:
        rows = torch.empty(case.rows, case.dim).normal_()
        teacher, noise = normalize(torch.randn(case.images, case.dim), dim=1), 1.0
    else:
        saved = torch.load(case.features)[case.dim]
        rows, noise = saved["rows"][: case.rows].float(), 0.5
        teacher = normalize(saved["queries"][: case.images].float(), dim=1)
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))
    student = normalize(teacher + noise * torch.randn(teacher.shape) / case.dim**0.5, dim=1)
    return student, teacher, rows


def step(side: str, case: Case, student: Tensor, teacher: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward: loss and gradient."""
    student = student.detach().requires_grad_()
    loss = SIDES[side](student, teacher, rows, case.teacher_temperature)
    loss.backward()
    assert student.grad is not None
    return loss.detach(), student.grad


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def resident_mib(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def extra_memory(side: str, case: Case) -> float:
    """MiB above the inputs; runs in a process of its own."""
    student, teacher, rows = inputs(case)
    step(side, case, student[:8], teacher[:8], rows)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    step(side, case, student, teacher, rows)
    return resident_mib("VmHWM") - before


def measure(case: Case, repeats: int, *, memory: bool) -> Result:
    """The sides in turns, then each one's memory."""
    vectors = inputs(case)
    square = torch.randn(4096, 4096)
    sides = [side for side in SIDES if side != "all rows" or case.dim > MAX_DIM["cpu"]]
    (loss, gradient), (direct, direct_gradient) = (
        step(side, case, *vectors) for side in ("tinyseed", "direct")
    )
    times = {side: [] for side in sides}
    products = []
    for _ in range(repeats):
        for side, taken in times.items():
            taken.append(seconds(lambda side=side: step(side, case, *vectors)))
        products.append(seconds(lambda: square @ square))
    peak = 2 * 4096**3 / min(products)
    mib = {}
    if memory:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            mib = {side: pool.apply(extra_memory, (side, case)) for side in ("direct", "tinyseed")}
    medians = {side: statistics.median(taken) for side, taken in times.items()}
    ratios = {
        side: statistics.median(a / b for a, b in zip(taken, times["tinyseed"], strict=True))
        for side, taken in times.items()
    }
    return Result(
        images=case.images,
        rows=len(vectors[2]),
        dim=case.dim,
        teacher_temperature=case.teacher_temperature,
        features="noise" if case.features is None else case.features.stem,
        direct_s=medians["direct"],
        all_rows_s=medians.get("all rows"),
        tinyseed_s=medians["tinyseed"],
        speedup=ratios["direct"],
        speedup_by_leaving_out=ratios.get("all rows"),
        direct_mib=mib.get("direct"),
        tinyseed_mib=mib.get("tinyseed"),
        matrix_peak_gflops=peak / 1e9,
        share_of_peak=8 * case.images * case.rows * case.dim / min(times["tinyseed"]) / peak,
        loss_difference=((loss - direct).abs() / direct).item(),
        gradient_difference=((gradient - direct_gradient).norm() / direct_gradient.norm()).item(),
    )


def processor() -> str:
    """The processor's name and what it was measured with."""
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.processor()


def commit() -> str:
    """The checkout's commit, with a mark where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def show(result: Result) -> None:
    all_rows_ms = f"{result.all_rows_s * 1e3:.0f}" if result.all_rows_s else "—"
    memory = f"{result.direct_mib:.1f} / {result.tinyseed_mib:.1f}" if result.direct_mib else "—"
    print(
        f"{result.features:>10} {result.dim:>5} {result.images:>5} {result.teacher_temperature:>6}"
        f" {result.direct_s * 1e3:>8.0f} {all_rows_ms:>8} {result.tinyseed_s * 1e3:>8.0f} {result.speedup:>7.2f}x"
        f" {result.share_of_peak:>8.0%} {memory:>16} {result.loss_difference:>9.0e} {result.gradient_difference:>9.0e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="SEED's loss by look-ups beside the direct formula.")
    parser.add_argument("--images", type=int, nargs="+", default=[256, 1024], help="batch sizes n")
    parser.add_argument("--rows", type=int, default=65_536, help="queue rows k")
    parser.add_argument("--dims", type=int, nargs="+", default=[128], help="embedding dimensions d")
    parser.add_argument("--teacher-temperatures", type=float, nargs="+", default=[0.01])
    parser.add_argument("--features", type=Path, help="a file from bench/features.py; noise by default")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loss.json")
    arguments = parser.parse_args()
    setup = {
        "command": " ".join(["python", "bench/loss.py", *sys.argv[1:]]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": "float32",
        "seed": 0,
        "repeats": arguments.repeats,
    }
    print("\n".join(f"{name}: {value}" for name, value in setup.items()))
    print(f"k {arguments.rows}; forward + backward; times in ms, extra memory in MiB, direct / tinyseed\n")
    print(
        "  features     d     n    τ_T   direct all rows tinyseed  faster  of peak           memory"
        " loss diff grad diff"
    )
    results = []
    for dim, images, temperature in itertools.product(
        arguments.dims, arguments.images, arguments.teacher_temperatures
    ):
        case = Case(images, arguments.rows, dim, temperature, arguments.features)
        results.append(measure(case, arguments.repeats, memory=arguments.memory))
        show(results[-1])
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {**setup, "results": [asdict(result) for result in results]}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
