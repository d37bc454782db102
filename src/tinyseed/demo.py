"""`tinyseed demo`: the whole way in a few minutes, on photos that are bundled with the package.

A small student learns from the bundled teacher; as a baseline the same network is trained without a teacher for the
same time. They are compared on test photos that nothing was trained or tuned on.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tinyseed.assets import CLOTHING_TEACHER, clothing
from tinyseed.checkpoints.load import load_model
from tinyseed.data.base import Source
from tinyseed.data.decode import decode
from tinyseed.data.sources import open_source
from tinyseed.engine.run_folder import RunFolder
from tinyseed.engine.train import train
from tinyseed.evaluation.features import FeatureBank, embed_source
from tinyseed.evaluation.health import neighbor_agreement
from tinyseed.evaluation.neighbors import knn
from tinyseed.files import write_text
from tinyseed.methods.catalog import spec_of
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.seed import SeedSettings
from tinyseed.models.encoder import Encoder
from tinyseed.models.spec import ModelSpec
from tinyseed.picture import Neighbor, Query, draw_neighbors
from tinyseed.progress import duration
from tinyseed.settings.demo import DemoSettings
from tinyseed.settings.train import TrainSettings
from tinyseed.text import shown

TEACHER = "tinyseed/clothing-resnet18"
STUDENT = "mobilenetv3_small_050"
IMAGE_SIZE = 64
NEIGHBORS = 10
QUERIES, SHOWN = 6, 4


@dataclass(frozen=True)
class Row:
    """A row of the demo's table; k-NN and agreement in per cent, on the test photos."""

    model: str
    backbone: str
    parameters: int
    knn_top1: float
    neighbour_agreement: float
    minutes: float


@dataclass(frozen=True)
class Seen:
    """A model, and its features of the training and the test photos."""

    encoder: Encoder
    train: FeatureBank
    test: FeatureBank


def demo(settings: DemoSettings) -> list[Row]:
    """Train the student and the baseline; print the table, write table.json and neighbours.png.

    Raises:
        InputError: the output folder holds something else, or the training time is out of range.
        Stopped: asked to stop; the same command resumes.
    """
    settings.check()
    console, began = Console(highlight=False), time.monotonic()
    for number, (title, run) in enumerate(stages(settings), start=1):
        console.print(
            f"[bold]{number}/2[/bold]  {title}  [dim]→ {escape(shown(str(run.out)))}[/dim]", soft_wrap=True
        )
        train_unless_done(run, console)
    models = {name: look(encoder) for name, encoder in encoders(settings).items()}
    rows = [measure(name, seen, models["teacher"], settings) for name, seen in models.items()]
    picture = draw(settings, models)
    table = [dataclasses.asdict(row) for row in rows]
    write_text(settings.out / "table.json", json.dumps(table, indent=2) + "\n")
    show(console, rows, images=len(models["teacher"].test.labels))
    took = duration(time.monotonic() - began)
    done = f"picture {picture}   reports {settings.out}/*/report.html   {took}"
    console.print(shown(done), markup=False, soft_wrap=True)
    return rows


def stages(settings: DemoSettings) -> list[tuple[str, TrainSettings]]:
    """The two runs. Their settings were chosen on a held-out part of the training photos, never on the test photos."""
    common: dict[str, Any] = {
        "data": (str(clothing("train")),),
        "image_size": IMAGE_SIZE,
        "batch_size": 128,
        "seed": settings.seed,
        "evaluate_every": 10_000,
        "validation_images": 400,
        "max_minutes": settings.minutes / 2,
    }
    distilled = SeedSettings(
        teacher=TEACHER, student=STUDENT, out=settings.out / "distilled", lr=0.4, **common
    )
    baseline = MoCoSettings(
        backbone=STUDENT,
        out=settings.out / "baseline",
        queue_size=1024,
        encoder_momentum=0.99,
        lr=0.3,
        **common,
    )
    return [
        (f"distilling the bundled teacher into the student, {STUDENT} (SEED)", distilled),
        ("training the same network without a teacher for the same time, as a baseline (MoCo-v2)", baseline),
    ]


def train_unless_done(run: TrainSettings, console: Console) -> None:
    """Reuse a run that an earlier demo finished, resume one that it began."""
    folder = RunFolder(run.out)
    if folder.summary.exists() and not folder.missing(spec_of(run).model_file):
        console.print(f"     finished before: {shown(str(run.out))}", markup=False)
        return
    train(run.replaced(resume=folder.config.exists()))


def encoders(settings: DemoSettings) -> dict[str, Encoder]:
    """The models of the table, the weakest first."""
    return {
        "random init": load_model(ModelSpec(f"random:{STUDENT}", seed=settings.seed)),
        "baseline": load_model(settings.out / "baseline"),
        "distilled": load_model(settings.out / "distilled"),
        "teacher": load_model(TEACHER),
    }


def look(encoder: Encoder) -> Seen:
    """Features of all photos."""
    train, test = (
        embed_source(encoder, open_source([str(clothing(split))]), size=IMAGE_SIZE)
        for split in ("train", "test")
    )
    return Seen(encoder, train, test)


def measure(name: str, seen: Seen, teacher: Seen, settings: DemoSettings) -> Row:
    """A model's row of the table."""
    (result,) = knn(
        seen.train.features, seen.train.labels, seen.test.features, seen.test.labels, k=(NEIGHBORS,)
    )
    backbone = seen.encoder.backbone
    return Row(
        model=name,
        backbone=backbone.name,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        knn_top1=100 * result.top1,
        neighbour_agreement=100 * neighbor_agreement(teacher.test.features, seen.test.features, NEIGHBORS),
        minutes=_minutes(name, settings),
    )


def _minutes(name: str, settings: DemoSettings) -> float:
    if name == "teacher":
        lineage = json.loads((CLOTHING_TEACHER / "lineage.json").read_text(encoding="utf-8"))
        return float(lineage["summary"]["minutes"])
    return 0.0 if name == "random init" else settings.minutes / 2


def show(console: Console, rows: list[Row], images: int) -> None:
    """Print the table, and what it says in words."""
    title = f"{NEIGHBORS}-NN on {images:,} test photos of 17 kinds of clothes"
    caption = f"agreement: fraction of the teacher's {NEIGHBORS} nearest neighbors that the model has, too"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("model", "backbone", "weights", "k-NN", "agreement", "trained"):
        table.add_column(column, justify="left" if column in ("model", "backbone") else "right", no_wrap=True)
    for row in rows:
        figures = (
            f"{row.parameters / 1e6:.2f} M",
            f"{row.knn_top1:.1f} %",
            f"{row.neighbour_agreement:.1f} %",
        )
        table.add_row(row.model, row.backbone, *figures, f"{row.minutes:.1f} min" if row.minutes else "—")
    console.print(table)
    console.print(verdict(rows, images))


def verdict(rows: list[Row], images: int) -> str:
    """The table in words, whichever way it went; a gain within two standard errors is not called one."""
    by_name = {row.model: row for row in rows}
    distilled, teacher = by_name["distilled"], by_name["teacher"]
    parts = [
        f"The student has {teacher.parameters / distilled.parameters:.0f} times fewer parameters than its teacher "
        f"and {100 * distilled.knn_top1 / teacher.knn_top1:.0f} % of its k-NN accuracy."
    ]
    for name, what in (("baseline", "the baseline"), ("random init", "random init")):
        other = by_name[name]
        gain = distilled.knn_top1 - other.knn_top1
        error = (
            standard_error(distilled.knn_top1, images) ** 2 + standard_error(other.knn_top1, images) ** 2
        ) ** 0.5
        doubt = "" if abs(gain) > 2 * error else " (within two standard errors: no clear difference)"
        parts.append(f"Against {what}: {gain:+.1f} ± {error:.1f} points{doubt}.")
    return " ".join(parts)


def standard_error(percent: float, images: int) -> float:
    """Standard error of a percentage of this many images, in points."""
    return (percent * (100 - percent) / images) ** 0.5


def draw(settings: DemoSettings, models: dict[str, Seen]) -> Path:
    """Draw the nearest neighbors of a few test photos for teacher, student and random init.

    The photos are the first ones of the six largest classes of the training photos, so they are not hand-picked.
    """
    train, test = open_source([str(clothing("train"))]), open_source([str(clothing("test"))])
    shown = ("teacher", "distilled", "random init")
    labels = models["teacher"].test.labels.numpy()
    frequent = np.argsort(-np.bincount(models["teacher"].train.labels.numpy()), kind="stable")[:QUERIES]
    chosen = [int(np.flatnonzero(labels == label)[0]) for label in frequent]
    queries = [_query(place, [models[name] for name in shown], train, test) for place in chosen]
    path = settings.out / "neighbours.png"
    caption = (
        f"Nearest of {len(train):,} training photos; green: same class. "
        "Rows: the first test photo of each of the largest classes, not hand-picked."
    )
    titles = ["teacher", "student, distilled", "student, random init"]
    draw_neighbors(path, titles, queries, caption)
    return path


def _query(place: int, models: list[Seen], train: Source, test: Source) -> Query:
    label = int(models[0].test.labels[place])
    found = []
    for seen in models:
        unit = torch.nn.functional.normalize(seen.train.features, dim=1)
        nearest = (unit @ torch.nn.functional.normalize(seen.test.features[place], dim=0)).topk(SHOWN).indices
        found.append(
            [
                Neighbor(
                    decode(train.read(int(seen.train.indices[index]))), int(seen.train.labels[index]) == label
                )
                for index in nearest.tolist()
            ]
        )
    photo = decode(test.read(int(models[0].test.indices[place])))
    return Query(photo, test.classes[label], found)
