"""Train each method for 20 seeded steps and run each evaluation on a small set; print every number as JSON.

Run as a program, so that nothing of the test session (its import hook, its threads) takes part:

    python tests/regression/measure.py 2      # threads

Only public functions are called, so the numbers stay comparable however the inside of the package changes.
"""

import hashlib
import json
import math
import os
import sys
import tempfile
from pathlib import Path

THREADS = int(sys.argv[1]) if len(sys.argv) > 1 else 1
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ.setdefault("TINYSEED_CACHE", tempfile.mkdtemp(prefix="tinyseed-regression-"))

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import tinyseed

torch.set_num_threads(THREADS)

CHANGING = {
    "model",
    "images_per_s",
    "data_wait",
    "minutes",
    "seconds",
    "latency_ms",
    "latency_by",
    "of_teacher",
    "file",
}
"""What depends on the clock, or names a temporary folder."""

COMMON = {
    "batch_size": 12,
    "image_size": 32,
    "epochs": 5,
    "workers": 0,
    "precision": "32",
    "log_every": 1,
    "evaluate_every": 1,
    "lr": 0.3,
    "seed": 3,
}
STUDENT = "resnet10t"


def write_photos(folder: Path, count: int, seed: int) -> Path:
    """Pictures of three classes: a shape of its own color on noise."""
    generator = np.random.default_rng(seed)
    for name, fill in (("disc", (40, 60, 200)), ("square", (200, 60, 40)), ("bar", (60, 190, 70))):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = generator.integers(0, 160, (40, 48, 3), dtype=np.uint8)
            picture = Image.fromarray(noise)
            x, y, side = (int(value) for value in generator.integers(2, 20, 3))
            draw = ImageDraw.Draw(picture)
            match name:
                case "disc":
                    draw.ellipse((x, y, x + side + 4, y + side + 4), fill=fill)
                case "square":
                    draw.rectangle((x, y, x + side + 4, y + side + 4), fill=fill)
                case _:
                    draw.rectangle((x, y, x + side + 4, y + 4), fill=fill)
            picture.save(folder / name / f"{number:02d}.png")
    return folder


def write_voc(folder: Path) -> Path:
    """Ten images of a red and a blue square with their boxes, in VOC's layout."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, numbers in {"trainval": range(6), "test": range(6, 10)}.items():
        lines = "".join(f"{number:03d}\n" for number in numbers)
        (folder / f"ImageSets/Main/{split}.txt").write_text(lines)
        for number in numbers:
            random = np.random.default_rng(number)
            image = Image.fromarray(random.integers(90, 140, (64, 80, 3), dtype=np.uint8))
            objects = ""
            for place, (name, color) in enumerate({"blue": (30, 60, 220), "red": (220, 50, 30)}.items()):
                side = int(random.integers(16, 30))
                x, y = (
                    int(random.integers(2 + 40 * place, 8 + 40 * place)),
                    int(random.integers(2, 62 - side)),
                )
                ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=color)
                corners = zip(
                    ("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + side, y + side), strict=True
                )
                box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
                objects += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
            image.save(folder / f"JPEGImages/{number:03d}.png")
            (folder / f"Annotations/{number:03d}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def plain(value: object) -> object:
    """JSON values; floats exactly, as hexadecimal text."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items() if name not in CHANGING}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value.hex() if math.isfinite(value) else repr(value)
    return value


def run_numbers(out: Path) -> dict[str, object]:
    """The whole log of a run, and a digest of the weights that it left."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    digest = hashlib.sha256()
    for file in sorted(out.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            digest.update(f"{file.name} {name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    assert lines[-1]["step"] == 20, lines[-1]
    return {"metrics": plain(lines), "weights": digest.hexdigest()}


def methods(folder: Path, data: Path) -> dict[str, object]:
    """20 steps of each method."""
    teacher = {"teacher": "resnet10t", "teacher_weights": "random", "student": STUDENT}
    tinyseed.distill(data=data, out=folder / "seed", queue_size=24, **teacher, **COMMON)
    tinyseed.distill(
        data=data, out=folder / "seed-accumulated", accumulate=2, projector="linear", max_minutes=None,
        **teacher, **COMMON,
    )  # fmt: skip
    settings = {
        "moco-v1": {"queue_size": 24, "dim": 16},
        "moco-v2": {"queue_size": 24, "dim": 16, "warmup_epochs": 1.0},
        "simclr": {"dim": 16, "temperature": 0.5},
        "swav": {"dim": 16, "prototypes": 20, "small_crops": 2, "queue_size": 24, "queue_start_epoch": 1},
    }
    for method, own in settings.items():
        tinyseed.pretrain(method, data=data, backbone=STUDENT, out=folder / method, **own, **COMMON)
    return {name: run_numbers(folder / name) for name in ("seed", "seed-accumulated", *settings)}


def evaluations(folder: Path, train: Path, test: Path) -> dict[str, object]:
    """Each evaluation of the distilled student."""
    model, data = str(folder / "seed"), {"train_data": str(train), "test_data": str(test)}
    trained = {"precision": "32", "epochs": 2, "batch_size": 8}
    asked = {
        "knn": ("knn", {"model": model, "k": (1, 5), "weighting": "both", **data}),
        "knn-same": ("knn", {"model": model, "k": (3,), "train_data": str(train), "test_data": str(train)}),
        "linear": ("linear", {"model": model, "seeds": 2, **data}),
        "linear-moco": ("linear", {"model": model, "protocol": "moco", **trained, **data}),
        "semi": ("semi", {"model": model, "fraction": (0.2,), **trained, **data}),
        "transfer": ("transfer", {"model": model, **data}),
        "transfer-finetune": (
            "transfer",
            {"model": model, "mode": "finetune", "lr": (0.01, 0.1), **trained, **data},
        ),
        "retention": (
            "retention",
            {
                "student": model, "teacher": str(folder / "moco-v2"), "alone": str(folder / "simclr"),
                "fraction": (0.2,), "threads": THREADS, "out": str(folder / "retention"), **trained, **data,
            },
        ),
    }  # fmt: skip
    found = {}
    for name, (evaluation, settings) in asked.items():
        report = tinyseed.evaluate(evaluation, **settings)
        found[name] = {"results": plain(report.results), "unreadable": report.unreadable_images}
    return found


def detection(folder: Path) -> dict[str, object]:
    """Three steps of a detector, from the student and from random weights."""
    voc = write_voc(folder / "voc")
    out = folder / "detect"
    tinyseed.evaluate(
        "detect", model=str(folder / "seed"), train_data=str(voc), format="voc", schedule=3, batch_size=2,
        image_size=(64,), compare=("random",), workers=0, out=out,
    )  # fmt: skip
    report = json.loads((out / "evaluate-detect.json").read_text())
    kept = ("backbone", "box", "loss_first", "loss_last")
    return {"results": plain([{name: row[name] for name in kept} for row in report["results"]])}


def main() -> None:
    """Print all numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = write_photos(folder / "train", 20, seed=0), write_photos(folder / "test", 6, seed=1)
        numbers = methods(folder, train) | {"evaluations": evaluations(folder, train, test)}
        # Detection computes in bfloat16 where the processor has it; that is a version of its own.
        numbers["detection"] = detection(folder)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
