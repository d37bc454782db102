"""Training a classifier in bfloat16 beside float32: seconds per epoch, and the accuracy that results.

    python bench/finetune.py [--backbone resnet18] [--image-size 112] [--images 512] [--epochs 2] [--turns 3]

Fine-tunes a network with random weights, and trains a linear layer on it frozen, on the package's clothing photos;
turns alternate. Top-1 is of all test photos, measured in float32 in either case. Writes bench/results/finetune.json.
"""

import argparse
import statistics
import time
from importlib.resources import files

import numpy as np
from rich.console import Console
from rich.table import Table

from common import machine, write_results
from tinyseed.evaluation.classifier import Recipe, fit_classifier, measure_classifier
from tinyseed.evaluation.run import open_model
from tinyseed.evaluation.splits import open_splits
from tinyseed.settings.evaluation import EvaluationSettings

PRECISIONS = ("32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    photos = files("tinyseed") / "assets" / "clothing"
    splits = open_splits(
        EvaluationSettings(
            train_data=(str(photos / "train.parquet"),),
            test_data=(str(photos / "test.parquet"),),
            image_size=arguments.image_size,
        )
    )
    train = splits.train.take(np.linspace(0, len(splits.train) - 1, arguments.images).astype(np.int64))
    encoder = open_model(f"random:{arguments.backbone}", arguments.image_size)
    recipes = {
        "fine-tuning": Recipe(arguments.epochs, 64, 0.1, 0.1, schedule="cosine"),
        "linear layer, frozen backbone": Recipe(arguments.epochs, 64, None, 30.0),
    }
    table = Table("what", "float32 s per epoch", "bfloat16", "faster", "top-1 float32", "bfloat16")
    results = {}
    for title, recipe in recipes.items():
        seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        top1 = {}
        for _ in range(arguments.turns):
            for precision in PRECISIONS:
                began = time.perf_counter()
                model = fit_classifier(encoder, train, len(splits.classes), recipe, precision=precision)
                seconds[precision].append((time.perf_counter() - began) / arguments.epochs)
                if precision not in top1:
                    top1[precision] = measure_classifier(model, splits.test).row["top1"]
        median = {precision: statistics.median(values) for precision, values in seconds.items()}
        faster = median["32"] / median["bf16"]
        results[title] = {"seconds": median, "faster": faster, "top1": top1}
        shown = (*(f"{median[one]:.2f}" for one in PRECISIONS), f"{faster:.2f}×")
        table.add_row(title, *shown, *(f"{top1[one]:.1f} %" for one in PRECISIONS))
    Console().print(table)
    write_results("finetune", {"settings": vars(arguments), "results": results, "machine": machine()})


if __name__ == "__main__":
    main()
