"""What keeping the teacher's vectors saves, and what repeated views cost.

    python bench/cache.py [--turns 5] [--case NAME] [--precision 32|auto]
    python bench/cache.py --accuracy [--epochs 32] [--seeds 2] [--data train|test]

Speed: whole training steps at 224 px with the teacher, and with its vectors on disk, in turns in one process; medians
of the ratios of the turns. Teachers have random weights and MoCo-v2's head. Then the time from starting a command whose
vectors and monitor features are all there to its first step.

Accuracy: a MobileNetV3-small 0.5 learns from the bundled teacher on the bundled photos at 64 px, with 1, 2, 4, 8 and 16
views of each image and with fresh ones, for equal numbers of steps; k-NN on held-out photos.

Writes bench/results/cache.json; the part that was not run stays as it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from common import RESULTS, machine, write_results
from step import Case, fill, settings_of, timed
from tinyseed.assets import clothing
from tinyseed.engine.runs import Runs, open_runs
from tinyseed.engine.train import train, train_step
from tinyseed.methods.seed import SeedSettings

CASES = [
    Case("ResNet-50 to ResNet-18", "resnet50", "resnet18", 224, 32, 65536, 1.5),
    Case("ResNet-50 to MobileNetV3-Large", "resnet50", "mobilenetv3_large_100", 224, 32, 65536, 2.3),
    Case("ResNet-152 to MobileNetV3-Large", "resnet152", "mobilenetv3_large_100", 224, 32, 65536, 4.5),
]

VIEWS = (1, 2, 4, 8, 16, None)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--case", default="", help="only cases whose name contains this")
    arguments.add_argument("--precision", default="", help="only this one")
    arguments.add_argument("--accuracy", action="store_true")
    arguments.add_argument("--epochs", type=int, default=32)
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--data", default="train", choices=("train", "test"))
    given = arguments.parse_args()
    path = RESULTS / "cache.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TINYSEED_CACHE"] = f"{folder}/cache"
        if given.accuracy:
            content["accuracy"] = {"machine": machine(), **accuracy(Path(folder), given)}
        else:
            content["speed"] = {"machine": machine(), "results": speed(Path(folder), given)}
    if not (given.case or given.precision):
        write_results("cache", content)


def speed(folder: Path, given: argparse.Namespace) -> list[dict]:
    results = []
    for case in CASES:
        if given.case in case.name:
            for precision in (given.precision,) if given.precision else ("32", "auto"):
                results.append(compare(case, precision, folder, given.turns))
            results[-1]["seconds_to_first_step"] = first_step(case, folder)
            print(f"  first step after {results[-1]['seconds_to_first_step']:.1f} s")
    return results


def out_of(case: Case, folder: Path, name: str) -> Path:
    return folder / f"{case.teacher}-{case.student}-{name}"


def compare(case: Case, precision: str, folder: Path, turns: int) -> dict:
    """A step with the teacher, and one with its vectors on disk, in turns."""
    with ExitStack() as stack:
        both: list[Runs] = []
        for views in (None, 1):
            name = f"{precision}-{views}"
            settings = settings_of(
                case, folder, out=out_of(case, folder, name), cache_views=views, precision=precision
            )
            both.append(stack.enter_context(open_runs({"": settings}, quiet=True)))
        keep_random_vectors(both[1])
        steps = []
        for runs in both:
            (run,) = runs.all
            fill(run)
            batches = runs.batches()
            steps.append(lambda run=run, batches=batches: run.took(*train_step([run], batches)))
        for step in steps:
            step()
        times = [[timed(step, 1) for step in steps] for _ in range(turns)]
        assert both[1].kept is not None
        assert both[1].kept.targets.speed.images == 0  # the teacher was not asked
        resolved = both[1].shared.settings.precision
    fresh, kept = (statistics.median(each) / case.batch for each in zip(*times, strict=True))
    ratio = statistics.median(one / other for one, other in times)
    print(
        f"{case.name}, {resolved}: {1000 * fresh:.1f} → {1000 * kept:.1f} ms/image, ×{ratio:.2f} (aim {case.aim})"
    )
    return {
        "case": case.name,
        "precision": resolved,
        "batch": case.batch,
        "fresh_ms_per_image": 1000 * fresh,
        "cached_ms_per_image": 1000 * kept,
        "ratio": ratio,
        "ratios": [one / other for one, other in times],
        "aim": case.aim,
    }


def keep_random_vectors(runs: Runs) -> None:
    """Fill the cache without the teacher: what the vectors are does not matter to the time of a step."""
    assert runs.kept is not None
    assert runs.shared.teacher is not None
    dim = runs.shared.teacher.dim
    every = np.arange(len(runs.shared.data.source))
    vectors = np.random.default_rng(0).normal(size=(len(every), dim)).astype(np.float16)
    runs.kept.targets.store.array("rows-0", (dim,), np.dtype(np.float16)).keep(0, every, vectors)


def first_step(case: Case, folder: Path) -> float:
    """Seconds from starting a command to its first line of metrics.jsonl; everything of the teacher is kept."""
    settings = settings_of(case, folder, out=out_of(case, folder, f"first-{time.monotonic_ns()}"))
    flags = {
        "data": settings.data[0],
        "teacher": settings.teacher,
        "student": case.student,
        "out": settings.out,
        "image-size": case.size,
        "batch-size": case.batch,
        "queue-size": 1024,
        "validation-images": 16,
        "log-every": 1,
        "cache-views": 1,
        "epochs": 1,
    }
    typed = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "tinyseed", "distill", *typed], stderr=subprocess.PIPE)
    metrics = Path(settings.out) / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"loss"' in metrics.read_text()):
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    return seconds


def accuracy(folder: Path, given: argparse.Namespace) -> dict:
    results = []
    for views in VIEWS:
        for seed in range(given.seeds):
            settings = SeedSettings(
                data=(str(clothing(given.data)),),
                out=folder / f"{views}-{seed}",
                teacher="tinyseed/clothing-resnet18",
                student="mobilenetv3_small_050",
                image_size=64,
                batch_size=64,
                lr=0.2,
                epochs=given.epochs,
                seed=seed,
                cache_views=views,
                cache_crops=views is not None,
                evaluate_every=given.epochs,
                log_every=10**9,
                precision="32",
            )
            summary = train(settings, quiet=True)
            results.append(
                {"views": views, "seed": seed}
                | {name: summary[name] for name in ("steps", "knn_top1", "neighbour_agreement", "minutes")}
            )
            print(results[-1], flush=True)
    return {"epochs": given.epochs, "data": given.data, "results": results}


if __name__ == "__main__":
    main()
