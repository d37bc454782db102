"""The evaluations of a student, its random init and its teacher on one data set, as Markdown for docs/results.md.

    python bench/proof.py --student runs/small --teacher runs/teacher --name imagenette --image-size 112 \
        --train-data D/imagenette224-subset/train.parquet --test-data D/imagenette224-subset/val.parquet

Runs `tinyseed evaluate retention` (k-NN, linear probe, 1 % and 10 % of the labels, cost), then for each of the three
the linear protocol of MoCo, a linear layer on another data set (--other-train, --other-test) and fine-tuning on all
labels, in this order, and starts nothing more once the minutes are over: what has not run stands as "not run". An
evaluation that has begun is finished. The same command goes on where it was stopped. Writes
bench/results/proof-NAME.json and prints the tables.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import tinyseed
from common import machine, write_results
from tinyseed.checkpoints.load import random_init
from tinyseed.checkpoints.saved import load_encoder, model_file, save_encoder

NOT_RUN = "not run"


def main() -> None:
    arguments = parsed()
    began = time.monotonic()
    out = Path(arguments.out) / arguments.name
    data = {
        "train_data": arguments.train_data,
        "test_data": arguments.test_data,
        "image_size": arguments.image_size or "auto",
        "limit": arguments.limit,
    }
    retention = kept(
        out / "retention.json",
        lambda: told(
            tinyseed.evaluate(
                "retention", student=arguments.student, teacher=arguments.teacher, out=out, **data
            )
        ),
    )
    print((out / "retention.md").read_text(encoding="utf-8"), flush=True)
    twin = out / "twin"
    if model_file(twin) is None:
        save_encoder(twin, random_init(load_encoder(arguments.student), 0))
    models = {"random": str(twin), "student": arguments.student, "teacher": arguments.teacher}
    rows: dict[str, dict[str, str]] = {}
    for title, (evaluation, settings) in further(arguments, data).items():
        for role, model in models.items():
            folder = out / role / title.replace(" ", "-")
            path = folder / "proof.json"
            if time.monotonic() - began > 60 * arguments.max_minutes and not path.is_file():
                rows.setdefault(title, {})[role] = NOT_RUN
                continue
            compute = partial(tinyseed.evaluate, evaluation, model=model, out=folder, **settings)
            run = kept(path, lambda compute=compute: told(compute()))
            rows.setdefault(title, {})[role] = f"{run['results'][0]['top1']:.1f} ({run['seconds']:.0f} s)"
    print("\n".join(markdown(rows, models)))
    setting = {name: value for name, value in vars(arguments).items() if name != "out"}
    content = {"settings": setting, "retention": retention["results"], "further": rows, "machine": machine()}
    write_results(f"proof-{arguments.name}", content)


def further(arguments: argparse.Namespace, data: dict) -> dict[str, tuple[str, dict]]:
    """The evaluations beside retention's: title → name and settings."""
    moco = {"protocol": "moco", "epochs": arguments.epochs, "batch_size": arguments.batch_size}
    tuning = {"mode": "finetune", "epochs": arguments.tuning_epochs, "lr": (0.01, 0.1)}
    other = {"train_data": arguments.other_train, "test_data": arguments.other_test}
    chosen = {"linear, MoCo's protocol": ("linear", data | moco)}
    if arguments.other_train:
        chosen["another set, linear"] = ("transfer", data | other | {"mode": "linear"})
    return chosen | {"fine-tuned on all labels": ("transfer", data | tuning)}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", required=True, help="run folder")
    parser.add_argument("--teacher", required=True, help="run folder, or a backbone's name")
    parser.add_argument("--train-data", required=True)
    parser.add_argument("--test-data", required=True)
    parser.add_argument("--name", required=True, help="of the data set, for the files")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--other-train", help="labelled images of another kind, to transfer to")
    parser.add_argument("--other-test")
    parser.add_argument("--epochs", type=int, default=20, help="of MoCo's protocol")
    parser.add_argument("--tuning-epochs", type=int, default=10, help="of the fine-tuning on all labels")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--max-minutes", type=float, default=60.0)
    parser.add_argument("--out", default="runs/proof")
    return parser.parse_args()


def told(report) -> dict:
    return {"results": list(report.results), "seconds": report.seconds, "notes": list(report.notes)}


def kept(path: Path, compute: Callable[[], dict]) -> dict:
    """The figures of a former call, or computed and written down."""
    if not path.is_file():
        figures = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(rows: dict[str, dict[str, str]], models: dict[str, str]) -> list[str]:
    lines = [f"| top-1 % | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    return ["", *lines, *(f"| {title} | {' | '.join(row.values())} |" for title, row in rows.items())]


if __name__ == "__main__":
    main()
