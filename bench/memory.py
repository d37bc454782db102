"""The most memory that a run at 224 px takes, by versions of the package: one step of ResNet-50 → ResNet-18.

Each run is the command itself in a process of its own; its peak resident size is what the kernel reports at its end.

    python bench/memory.py [--before ../checkout-of-another-commit] [--batch 256] [--precision 32]

Adds to bench/results/memory.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import RESULTS, machine, write_results
from tinyseed.assets import clothing

HERE = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="a checkout to compare with")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", default="32")
    given = parser.parse_args()
    checkouts = {"after": (HERE, []), "after, checkpointed": (HERE, ["--checkpoint-activations"])}
    if given.before:
        checkouts = {"before": (Path(given.before).resolve(), []), **checkouts}
    result: dict[str, object] = {"batch": given.batch, "precision": given.precision}
    for name, (checkout, flags) in checkouts.items():
        mib, seconds = run(checkout, given, flags)
        result[name] = {"peak_mib": mib, "seconds": seconds}
        print(f"{name:<22}{mib:8,} MiB  {seconds:6.1f} s", flush=True)
    path = RESULTS / "memory.json"
    earlier = json.loads(path.read_text())["results"] if path.exists() else []
    kept = [each for each in earlier if (each["batch"], each["precision"]) != (given.batch, given.precision)]
    write_results("memory", {"machine": machine(), "results": [*kept, result]})


def run(checkout: Path, given: argparse.Namespace, flags: list[str]) -> tuple[int, float]:
    """Peak resident MiB and seconds of one step, with start and evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        fields = {
            "data": clothing("train"),
            "teacher": "resnet50",
            "teacher-weights": "random",
            "student": "resnet18",
            "batch-size": given.batch,
            "precision": given.precision,
            "queue-size": 65536,
            "validation-images": 64,
            "max-minutes": 0.01,
            "workers": 0,
            "out": Path(folder) / "run",
        }
        typed = [str(part) for name, value in fields.items() for part in (f"--{name}", value)]
        surroundings = os.environ | {
            "PYTHONPATH": str(checkout / "src"),
            "TINYSEED_CACHE": str(Path(folder) / "cache"),
        }
        command = [sys.executable, "-m", "tinyseed.cli", "distill", *typed, *flags]
        began = time.perf_counter()
        process = subprocess.Popen(command, env=surroundings, stderr=subprocess.DEVNULL)
        peak = [0]
        watcher = threading.Thread(target=watch, args=(process, peak))
        watcher.start()
        if process.wait():
            raise SystemExit(f"{' '.join(command)} failed")
        watcher.join()
        return peak[0] // 1024, time.perf_counter() - began


def watch(process: "subprocess.Popen[bytes]", peak: list[int]) -> None:
    """Note the peak resident size, in KiB, until the process has ended."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text(encoding="ascii").splitlines()
        except OSError:
            return
        peak[0] = max([peak[0], *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.1)


if __name__ == "__main__":
    main()
