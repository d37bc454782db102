"""SEED's loss by two look-ups beside the direct formula: time and memory, forward and backward, in one run.

    python bench/loss.py                                  n 256 and 1,024, k 65,536, d 128, float32
    python bench/loss.py --images 4096 --repeats 3

The direct formula is what anyone would write: the own score beside the queue's, two [n, k + 1] matrices, softmax,
log-softmax, autograd; vectors are divided by the temperature before the product, the faster way.

Time: the sides take turns within each repetition, so that other load on the machine meets both alike; the table has
medians, and the median of the ratios within a repetition. The matrix peak is the best float32 product of two
4,096 × 4,096 matrices seen between the repetitions; the share of it counts the look-ups' four products, 8 n k d.

Memory: each side runs once in a fresh process, after its inputs exist and after a call on 8 images, which starts
threads and buffers. Extra memory is the rise of the process' peak resident size (VmHWM, set back by
/proc/self/clear_refs just before the call) over its resident size just before: Linux only.

Imports tinyseed.objectives only. Prints a table and writes JSON.
"""

import argparse
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

from tinyseed.objectives.seed import seed_loss

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.2, 0.01
MIB = 1 << 20


def direct_loss(student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
    """The definition of the loss."""
    queries, targets = student / STUDENT_TEMPERATURE, teacher / TEACHER_TEMPERATURE
    own = (queries * teacher).sum(1, keepdim=True)
    log_student = torch.cat([own, queries @ rows.T], 1).log_softmax(1)
    own = (targets * teacher).sum(1, keepdim=True)
    target = torch.cat([own, targets @ rows.T], 1).softmax(1)
    return -(target * log_student).sum(1).mean()


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"direct": direct_loss, "tinyseed": seed_loss}


@dataclass(frozen=True)
class Result:
    """Both sides at one size: seconds, MiB, and how far the results are apart."""

    images: int
    rows: int
    dim: int
    direct_s: float
    tinyseed_s: float
    speedup: float
    direct_mib: float
    tinyseed_mib: float
    memory_share: float
    matrix_peak_gflops: float
    share_of_peak: float
    loss_difference: float
    gradient_difference: float


def inputs(images: int, k: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors; the rows are made in place, so that no temporary raises the process' peak."""
    torch.manual_seed(0)
    rows = torch.empty(k, d).normal_()
    rows.div_(torch.linalg.vector_norm(rows, dim=1, keepdim=True))
    teacher = normalize(torch.randn(images, d), dim=1)
    student = normalize(teacher + torch.randn(images, d) / d**0.5, dim=1)
    return student, teacher, rows


def step(side: str, student: Tensor, teacher: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward: loss and gradient."""
    student = student.detach().requires_grad_()
    loss = SIDES[side](student, teacher, rows)
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


def extra_memory(side: str, images: int, k: int, d: int) -> float:
    """MiB above the inputs; runs in a process of its own."""
    student, teacher, rows = inputs(images, k, d)
    step(side, student[:8], teacher[:8], rows)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mib("VmRSS")
    step(side, student, teacher, rows)
    return resident_mib("VmHWM") - before


def measure(images: int, k: int, d: int, repeats: int) -> Result:
    """Both sides in turns, then each one's memory."""
    vectors = inputs(images, k, d)
    square = torch.randn(4096, 4096)
    (loss, gradient), (direct, direct_gradient) = step("tinyseed", *vectors), step("direct", *vectors)
    times = {side: [] for side in SIDES}
    products = []
    for _ in range(repeats):
        for side, taken in times.items():
            taken.append(seconds(lambda side=side: step(side, *vectors)))
        products.append(seconds(lambda: square @ square))
    peak = 2 * 4096**3 / min(products)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {side: pool.apply(extra_memory, (side, images, k, d)) for side in SIDES}
    direct_s, tinyseed_s = (statistics.median(times[side]) for side in ("direct", "tinyseed"))
    return Result(
        images=images,
        rows=k,
        dim=d,
        direct_s=direct_s,
        tinyseed_s=tinyseed_s,
        speedup=statistics.median(a / b for a, b in zip(times["direct"], times["tinyseed"], strict=True)),
        direct_mib=memory["direct"],
        tinyseed_mib=memory["tinyseed"],
        memory_share=memory["tinyseed"] / memory["direct"],
        matrix_peak_gflops=peak / 1e9,
        share_of_peak=8 * images * k * d / min(times["tinyseed"]) / peak,
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
    print(
        f"{result.images:>6} {result.direct_s * 1e3:>9.0f} {result.tinyseed_s * 1e3:>9.0f} {result.speedup:>7.2f}x"
        f" {result.direct_mib:>11.1f} {result.tinyseed_mib:>9.1f} {result.memory_share:>7.1%}"
        f" {result.share_of_peak:>9.0%} {result.loss_difference:>9.0e} {result.gradient_difference:>9.0e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="SEED's loss by look-ups beside the direct formula.")
    parser.add_argument("--images", type=int, nargs="+", default=[256, 1024], help="batch sizes n")
    parser.add_argument("--rows", type=int, default=65_536, help="queue rows k")
    parser.add_argument("--dim", type=int, default=128, help="embedding dimension d")
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
    print(f"k {arguments.rows}, d {arguments.dim}; forward + backward; times in ms, extra memory in MiB\n")
    print("     n    direct  tinyseed  faster  direct MiB  tinyseed   share  of peak  loss diff  grad diff")
    results = []
    for images in arguments.images:
        results.append(measure(images, arguments.rows, arguments.dim, arguments.repeats))
        show(results[-1])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({**setup, "results": [asdict(result) for result in results]}, indent=2) + "\n"
    )
    print(f"\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
