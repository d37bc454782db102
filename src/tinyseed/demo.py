"""`tinyseed demo`: the whole way in a few minutes, on photos that come with the package. Imports api and below.

A small student learns from the teacher that comes with the package; the same student learns alone for the same time.
They are compared on test photos that nothing was trained or tuned on.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from tinyseed import api
from tinyseed.assets import CLOTHING_TEACHER, clothing
from tinyseed.data.decode import decode
from tinyseed.data.sources import Source, open_source
from tinyseed.engine.config import DistillConfig, PretrainMoCoConfig, RunConfig
from tinyseed.engine.progress import duration
from tinyseed.engine.run_folder import RunFolder
from tinyseed.errors import InputError
from tinyseed.evaluation.features import FeatureBank, embed_source
from tinyseed.evaluation.health import neighbor_agreement
from tinyseed.evaluation.neighbors import knn
from tinyseed.models.encoder import Encoder
from tinyseed.models.teacher import load_model
from tinyseed.picture import Neighbour, Query, draw_neighbours

TEACHER = "tinyseed/clothing-resnet18"
STUDENT = "mobilenetv3_small_050"
IMAGE_SIZE = 64
NEIGHBOURS = 10
QUERIES, SHOWN = 6, 4


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """`tinyseed demo`: where to, and for how long."""

    out: Path = Path("tinyseed-demo")
    """Folder for the two runs, the table and the picture; what is finished there is reused."""
    minutes: float = 4.0
    """Training time in all, half for the student that learns from the teacher, half for the one that learns alone."""
    seed: int = 0
    """Seed of every random choice."""


@dataclass(frozen=True)
class Row:
    """A line of the demo's table; shares in per cent, on the test photos."""

    model: str
    backbone: str
    parameters: int
    knn_top1: float
    neighbour_agreement: float
    minutes: float


@dataclass(frozen=True)
class Seen:
    """A model, and how it sees the training and the test photos."""

    encoder: Encoder
    train: FeatureBank
    test: FeatureBank


def demo(config: DemoConfig) -> list[Row]:
    """Train the student, and the student alone; print the table, write table.json and neighbours.png.

    Raises:
        InputError: `--out` holds something else, or the time is none.
        Stopped: asked to stop; the same command goes on from there.
    """
    if not 0.05 <= config.minutes <= 24 * 60:
        raise InputError("--minutes", config.minutes, "give a number of at least 0.05 and at most 1440")
    console, began = Console(highlight=False), time.monotonic()
    for number, (title, run) in enumerate(stages(config), start=1):
        console.print(f"[bold]{number}/2[/bold]  {title}  [dim]→ {run.out}[/dim]", soft_wrap=True)
        train_unless_done(run, console)
    models = {name: look(encoder) for name, encoder in encoders(config).items()}
    rows = [measure(name, seen, models["teacher"], config) for name, seen in models.items()]
    picture = draw(config, models)
    table = [dataclasses.asdict(row) for row in rows]
    (config.out / "table.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    show(console, rows, images=len(models["teacher"].test.labels))
    console.print(
        f"picture {picture}   reports {config.out}/*/report.html   {duration(time.monotonic() - began)}"
    )
    return rows


def stages(config: DemoConfig) -> list[tuple[str, RunConfig]]:
    """The two runs. Settings were chosen on a held-out part of the training photos, never on the test photos."""
    common = {
        "data": (str(clothing("train")),),
        "image_size": IMAGE_SIZE,
        "batch_size": 128,
        "seed": config.seed,
        "evaluate_every": 10_000,
        "validation_images": 400,
        "max_minutes": config.minutes / 2,
    }
    distilled = DistillConfig(
        teacher=TEACHER, student=STUDENT, out=config.out / "distilled", lr=0.4, **common
    )
    alone = PretrainMoCoConfig(
        backbone=STUDENT,
        out=config.out / "alone",
        queue_size=1024,
        encoder_momentum=0.99,
        lr=0.3,
        **common,
    )
    return [
        (f"the student, {STUDENT}, learns from the teacher that comes with tinyseed (SEED)", distilled),
        ("the same student learns alone for the same time (MoCo-v2)", alone),
    ]


def train_unless_done(run: RunConfig, console: Console) -> None:
    """A stage that an earlier demo finished is reused, one that it began is resumed."""
    folder = RunFolder(run.out)
    if folder.summary.exists():
        console.print(f"     finished before: {run.out}")
        return
    api.run(dataclasses.replace(run, resume=folder.config.exists()))


def encoders(config: DemoConfig) -> dict[str, Encoder]:
    """The table's four models, weakest first."""
    return {
        "random": load_model(f"random:{STUDENT}", seed=config.seed),
        "alone": load_model(str(config.out / "alone")),
        "distilled": load_model(str(config.out / "distilled")),
        "teacher": load_model(TEACHER),
    }


def look(encoder: Encoder) -> Seen:
    """Embed all photos."""
    train, test = (
        embed_source(encoder, open_source([str(clothing(split))]), size=IMAGE_SIZE)
        for split in ("train", "test")
    )
    return Seen(encoder, train, test)


def measure(name: str, seen: Seen, teacher: Seen, config: DemoConfig) -> Row:
    """A model's line of the table."""
    (result,) = knn(
        seen.train.features, seen.train.labels, seen.test.features, seen.test.labels, k=(NEIGHBOURS,)
    )
    backbone = seen.encoder.backbone
    return Row(
        model=name,
        backbone=backbone.name,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        knn_top1=100 * result.top1,
        neighbour_agreement=100 * neighbor_agreement(teacher.test.features, seen.test.features, NEIGHBOURS),
        minutes=_minutes(name, config),
    )


def _minutes(name: str, config: DemoConfig) -> float:
    if name == "teacher":
        lineage = json.loads((CLOTHING_TEACHER / "lineage.json").read_text(encoding="utf-8"))
        return float(lineage["summary"]["minutes"])
    return 0.0 if name == "random" else config.minutes / 2


def show(console: Console, rows: list[Row], images: int) -> None:
    """Print the table, and what it says."""
    title = f"{NEIGHBOURS}-NN on {images:,} test photos of 17 kinds of clothes"
    caption = f"agreement: share of the teacher's {NEIGHBOURS} nearest neighbours that the model has too"
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
    """The table in words, whichever way it went; a gain within two standard errors is called none."""
    by_name = {row.model: row for row in rows}
    distilled, teacher = by_name["distilled"], by_name["teacher"]
    parts = [
        f"The student has {teacher.parameters / distilled.parameters:.0f} times fewer parameters than its teacher "
        f"and {100 * distilled.knn_top1 / teacher.knn_top1:.0f} % of its k-NN accuracy."
    ]
    for name, what in (("alone", "learning alone"), ("random", "no training")):
        other = by_name[name]
        gain = distilled.knn_top1 - other.knn_top1
        error = (
            standard_error(distilled.knn_top1, images) ** 2 + standard_error(other.knn_top1, images) ** 2
        ) ** 0.5
        told = "" if abs(gain) > 2 * error else " (within two standard errors: no clear difference)"
        parts.append(f"Against {what}: {gain:+.1f} ± {error:.1f} points{told}.")
    return " ".join(parts)


def standard_error(percent: float, images: int) -> float:
    """Standard error of a share of so many images, in points."""
    return (percent * (100 - percent) / images) ** 0.5


def draw(config: DemoConfig, models: dict[str, Seen]) -> Path:
    """The neighbours of a few test photos by teacher, student and random net.

    The photos are the first of each of the six largest classes of the training part, so nobody picked them.
    """
    train, test = open_source([str(clothing("train"))]), open_source([str(clothing("test"))])
    shown = ("teacher", "distilled", "random")
    labels = models["teacher"].test.labels.numpy()
    frequent = np.argsort(-np.bincount(models["teacher"].train.labels.numpy()), kind="stable")[:QUERIES]
    chosen = [int(np.flatnonzero(labels == label)[0]) for label in frequent]
    queries = [_query(place, [models[name] for name in shown], train, test) for place in chosen]
    path = config.out / "neighbours.png"
    caption = (
        f"Nearest of {len(train):,} training photos; green: same class. "
        "Rows: the first test photo of each of the largest classes, not picked."
    )
    titles = ["teacher", "student, distilled", "student, random weights"]
    draw_neighbours(path, titles, queries, caption)
    return path


def _query(place: int, models: list[Seen], train: Source, test: Source) -> Query:
    label = int(models[0].test.labels[place])
    found = []
    for seen in models:
        unit = torch.nn.functional.normalize(seen.train.features, dim=1)
        nearest = (unit @ torch.nn.functional.normalize(seen.test.features[place], dim=0)).topk(SHOWN).indices
        found.append(
            [
                Neighbour(
                    decode(train.read(int(seen.train.indices[index]))), int(seen.train.labels[index]) == label
                )
                for index in nearest.tolist()
            ]
        )
    photo = decode(test.read(int(models[0].test.indices[place])))
    return Query(photo, test.classes[label], found)
