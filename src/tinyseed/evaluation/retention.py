"""`evaluate retention`: the page a manager reads. How much of the teacher the student keeps, and at what cost.

Random weights, the student alone (where given), the student and the teacher, measured by the same code on the same
images. Imports this room and models.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tinyseed.checkpoints.load import random_init
from tinyseed.evaluation import reporting
from tinyseed.evaluation.command import measure_knn
from tinyseed.evaluation.common import (
    DataConfig,
    Sides,
    at_least,
    check,
    model_digest,
    open_model,
    open_sides,
)
from tinyseed.evaluation.cost import cost
from tinyseed.evaluation.linear import measure_linear
from tinyseed.evaluation.probe import solver_notes
from tinyseed.evaluation.reporting import Clock, Report, markdown_table, text_table
from tinyseed.evaluation.semi import Few, Tuning, check_tuning, few_labels, measure_semi, semi_state
from tinyseed.evaluation.state import Figures, State
from tinyseed.evaluation.subset import save_subset
from tinyseed.files import write_text
from tinyseed.models.encoder import Encoder
from tinyseed.models.spec import RANDOM

NEIGHBOURS = 10

COSTS = {
    "parameters": "parameters",
    "gmacs": "G multiply-adds",
    "latency_ms": "CPU ms an image",
    "file_mb": "file MB",
}


@dataclass(frozen=True, kw_only=True)
class RetentionConfig(Tuning, DataConfig):
    """`tinyseed evaluate retention`."""

    student: str
    """The small model: a run folder, an exported file, or a backbone's name."""
    teacher: str
    """The big model that it has learned from."""
    alone: str | None = None
    """The student's backbone, trained without a teacher, to compare with."""
    threads: int = 1
    """Processor threads for the time an image takes."""
    quick: bool = False
    """Leave out the fine-tuning on few labels, which takes longest."""


@dataclass(frozen=True)
class Contestant:
    """One of the models that are compared."""

    role: str
    spec: str
    encoder: Encoder


def run(config: RetentionConfig) -> Report:
    """Measure all models on the same images, write evaluate-retention.json and retention.md.

    Raises:
        InputError: a setting, path or model is wrong, or labels are missing.
    """
    clock = Clock()
    check(config)
    check_tuning(config)
    at_least("--threads", config.threads, 1)
    sides = open_sides(config)
    models = _contestants(config)
    digests = [model_digest(model.encoder) for model in models]
    subsets = [] if config.quick else [few_labels(sides.train, part, config.seed) for part in config.fraction]
    learned = (config.epochs, config.batch_size, config.lr, config.lr_head, config.precision)
    settings = (config.fraction, *learned, config.seed)
    state = State(
        "retention", settings, config.threads, digests, sides.train.fingerprint, sides.test.fingerprint
    )
    folder = reporting.folder_for(config, config.student)
    if folder is not None:
        for few in subsets:
            save_subset(sides.train, few.places, folder / f"semi-subset-{few.name}.txt")
    rows, notes = [], [*sides.model_may_see()]
    for model in models:
        row, told = _measure(model, sides, subsets, config, state)
        rows.append(row)
        notes += told
    unreadable = max(row.pop("unreadable") for row in rows)
    _add_shares(rows)
    made = reporting.report(
        "retention",
        config,
        sides,
        rows,
        model=config.student,
        encoder=models[-2].encoder,
        clock=clock,
        notes=[*notes, *_reading(rows)],
        unreadable=unreadable,
    )
    if folder is not None:
        page = "\n".join(_page(made, config))
        reporting.write(made, folder, page)
        write_text(folder / "retention.md", page + "\n")
    state.clear()
    for model, few in itertools.product(models, subsets):
        semi_state(model.encoder, sides, few, config, config.seed).clear()
    return made


def _contestants(config: RetentionConfig) -> list[Contestant]:
    """Random weights, the student alone, the student, the teacher; those that there are, in this order."""
    student = open_model(config.student, config.image_size, field="--student")
    teacher = open_model(config.teacher, config.image_size, field="--teacher", round_size=True)
    models = [Contestant("random", RANDOM + student.backbone.name, random_init(student, config.seed))]
    if config.alone is not None:
        alone = open_model(config.alone, config.image_size, field="--alone")
        models.append(Contestant("alone", config.alone, alone))
    return [
        *models,
        Contestant("student", config.student, student),
        Contestant("teacher", config.teacher, teacher),
    ]


def _measure(
    model: Contestant, sides: Sides, subsets: Sequence[Few], config: RetentionConfig, state: State
) -> tuple[Figures, list[str]]:
    """One model's row, and what has to be said about it; finished parts of a stopped evaluation are taken over."""
    encoder, workers = model.encoder, config.workers

    def neighbours() -> Figures:
        k = min(NEIGHBOURS, len(sides.train) - sides.same)
        (found,), unreadable = measure_knn(encoder, sides, k=(k,), workers=workers)
        return {"knn_top1": found["top1"], "unreadable": unreadable}

    def linear() -> Figures:
        found, _ = measure_linear(encoder, sides, seeds=range(config.seed, config.seed + 1), workers=workers)
        return {"linear_top1": found["top1"], "converged": found["converged"]}

    def costs() -> Figures:
        return dataclasses.asdict(cost(encoder, threads=config.threads))

    row: Figures = {"role": model.role, "model": model.spec, "backbone": encoder.backbone.name}
    row["image_size"] = encoder.input.size
    for name, part in {"knn": neighbours, "linear": linear, "cost": costs}.items():
        row |= state.remember(f"{model.role}-{name}", part)
    notes = [f"{model.role}: {note}" for note in solver_notes({"converged": row.pop("converged")})]
    for few in subsets:
        found, told = measure_semi(encoder, sides, few, config, seed=config.seed, workers=workers)
        row[f"semi_{few.name}_top1"] = found["top1"]
        notes += told
    return row, notes


def _add_shares(rows: list[Figures]) -> None:
    """Each figure and cost in per cent of the teacher's, under `of_teacher`."""
    teacher = rows[-1]
    names = [name for name in teacher if name.endswith("_top1") or name in COSTS]
    for row in rows:
        row["of_teacher"] = {name: 100 * row[name] / teacher[name] for name in names if teacher[name]}


def _summary(rows: Sequence[Figures]) -> str:
    """The page's first sentence."""
    share = rows[-2]["of_teacher"]
    kept = [
        f"{value:.0f} % of the teacher's {_heading(name)}"
        for name, value in share.items()
        if name in ("knn_top1", "linear_top1")
    ]
    costs = [
        f"{share[name]:.0f} % of its {told}"
        for name, told in (
            ("parameters", "parameters"),
            ("gmacs", "multiply-adds"),
            ("latency_ms", "time an image"),
        )
        if name in share
    ]
    return f"The student keeps {' and '.join(kept)}, with {', '.join(costs[:-1])} and {costs[-1]}."


def _heading(name: str) -> str:
    if name in COSTS:
        return COSTS[name]
    if name.startswith("semi_"):
        return f"{100 * float(name.split('_')[1]):g} % labels"
    return {"knn_top1": "k-NN", "linear_top1": "linear probe"}[name]


def _quality(rows: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """Top-1 of each evaluation, and what share of the teacher's that is."""
    names = [name for name in rows[-1]["of_teacher"] if name not in COSTS]
    cells = []
    for row in rows:
        shares = row["of_teacher"]
        cells.append(
            [row["role"], row["backbone"], *(f"{row[name]:.1f} ({shares[name]:.0f} %)" for name in names)]
        )
    return ["model", "backbone", *map(_heading, names)], cells


def _costs(rows: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    cells = [
        [
            row["role"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gmacs']:.3f}",
            f"{row['latency_ms']:.2f}",
            f"{row['file_mb']:.1f}",
        ]
        for row in rows
        if row["role"] in ("student", "teacher")
    ]
    return ["model", *COSTS.values()], cells


def _reading(rows: Sequence[Figures]) -> list[str]:
    """How the columns are meant."""
    by = " and ".join(dict.fromkeys(row["latency_by"] for row in rows))
    return [
        "top-1 in per cent, in brackets as a share of the teacher's; k-NN: 10 neighbours, weighted; linear probe: L2 "
        "chosen on 10 % of the training images; labels: fine-tuned on so many of them",
        f"multiply-adds: of one image, FLOPs are twice as many; time: median of single images, {by}",
    ]


def table(made: Report) -> str:
    """The page for a terminal."""
    lines = [_summary(made.results), "", *text_table(*_quality(made.results)), ""]
    lines += [*text_table(*_costs(made.results)), "", *(f"  {note}" for note in made.notes)]
    return "\n".join(lines)


def _page(made: Report, config: RetentionConfig) -> list[str]:
    sides = f"{made.test_images:,} test images, {made.train_images:,} training images, {made.classes} classes"
    return [
        "# What the student keeps",
        "",
        _summary(made.results),
        "",
        f"Student {made.model}, teacher {made.results[-1]['model']}; {sides}; {made.seconds:,.0f} s.",
        "",
        *markdown_table(*_quality(made.results)),
        "",
        *markdown_table(*_costs(made.results)),
        *reporting.foot(made, config),
    ]
