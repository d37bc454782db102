"""`tinyseed evaluate retention`: how much of the teacher the student keeps, and at what cost.

Random init, the baseline (if given), the student and the teacher are measured by the same code on the same images.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tinyseed.errors import argument
from tinyseed.evaluation import knn, linear, semi
from tinyseed.evaluation.base import EvaluationSpec, Measured, Measurement, Metrics, Resume, Subject, merge
from tinyseed.evaluation.parts import cost, models, report, run, spec, splits
from tinyseed.evaluation.parts import load as loading
from tinyseed.settings.base import WORKERS, Range

NEIGHBORS = 10

TITLES = {"random": "random init", "alone": "baseline", "student": "student", "teacher": "teacher"}
"""Titles of the roles, which are as in the JSON."""

COSTS = {
    "parameters": "parameters",
    "gmacs": "G multiply-adds",
    "latency_ms": "CPU ms per image",
    "file_mb": "file MB",
}


@dataclass(frozen=True, kw_only=True)
class RetentionSettings(semi.FineTuneSettings):
    """Settings of `tinyseed evaluate retention`."""

    RANGES: ClassVar = {"threads": Range(1, WORKERS.high)}

    student: str
    """The small model: a run folder, an exported file, or a backbone's name."""
    teacher: str
    """The large model that the student was trained to reproduce."""
    baseline: str | None = field(default=None, metadata={"alias": "alone"})
    """The student's backbone trained without a teacher, to compare with."""
    model_output: Literal["backbone", "head", "trunk"] = "backbone"
    """What is evaluated of each model: the backbone's features, or the unit-length embedding after its head."""
    threads: int = 1
    """Number of processor threads for measuring the time per image."""
    quick: bool = False
    """Leave out fine-tuning on few labels, which takes longest."""


def subjects(settings: RetentionSettings) -> tuple[Subject, ...]:
    """Random init, the baseline if there is one, the student and the teacher, in this order."""
    student, teacher = _open("student", settings), _open("teacher", settings)
    fresh = loading.random_init(student.encoder, settings.seed)
    random = Subject("random", spec.RANDOM + student.encoder.backbone.name, fresh)
    baseline = () if settings.baseline is None else (_open("alone", settings),)
    return (random, *baseline, student, teacher)


def _open(role: str, settings: RetentionSettings) -> Subject:
    setting = "baseline" if role == "alone" else role
    name = getattr(settings, setting)
    with argument(setting, arch=setting, output="model_output"):
        encoder = run.open_model(
            name, settings.image_size, output=settings.model_output, round_size=role == "teacher"
        )
    return Subject(role, name, encoder)


def measure(
    encoder: "models.Encoder", splits: "splits.Splits", settings: RetentionSettings, resume: Resume
) -> Measurement:
    """k-NN, linear probe, cost and fine-tuning of one model, as one row."""
    k, seeds = min(NEIGHBORS, len(splits.train) - splits.same), range(settings.seed, settings.seed + 1)
    subsets = [] if settings.quick else semi.chosen_subsets(splits, settings)
    measures = {
        "knn": lambda: knn.measure_knn(encoder, splits, k=(k,), workers=settings.workers),
        "linear": lambda: linear.measure_probe(encoder, splits, seeds=seeds, workers=settings.workers),
        "cost": lambda: Measurement((dataclasses.asdict(cost.cost(encoder, threads=settings.threads)),)),
    }
    measured = {name: resume.remember(name, compute) for name, compute in measures.items()}
    for subset in subsets:
        measured[f"semi_{subset.name}"] = semi.measure_subset(encoder, splits, subset, settings, resume)
    row: Metrics = {}
    for name, part in measured.items():
        row |= part.row if name == "cost" else {f"{name}_top1": part.row["top1"]}
    return Measurement(
        (row,),
        (*splits.training_notes, *(note for part in measured.values() for note in part.notes)),
        max(part.unreadable for part in measured.values()),
        semi.subset_files(splits, subsets),
    )


def combine(measured: Measured, settings: RetentionSettings) -> Measurement:
    """A row per model, with each metric and cost in per cent of the teacher's under `of_teacher`."""
    rows = []
    for subject, measurement in measured:
        encoder = subject.encoder
        model = {"role": subject.role, "model": subject.name, "backbone": encoder.backbone.name}
        rows.append({**model, "image_size": encoder.input.size, **measurement.row})
    teacher = _row(rows, "teacher")
    names = [name for name in teacher if name.endswith("_top1") or name in COSTS]
    for row in rows:
        row["of_teacher"] = {name: 100 * row[name] / teacher[name] for name in names if teacher[name]}
    merged = merge(measured, TITLES)
    return dataclasses.replace(merged, metrics=tuple(rows), notes=(*merged.notes, *_reading(rows)))


def _row(rows: Sequence[Metrics], role: str) -> Metrics:
    return next(row for row in rows if row["role"] == role)


def _reading(rows: Sequence[Metrics]) -> list[str]:
    """How to read the columns."""
    by = " and ".join(dict.fromkeys(row["latency_by"] for row in rows))
    return [
        "top-1 in per cent, in brackets as a share of the teacher's; k-NN: 10 neighbors, weighted; linear probe: L2 "
        "chosen on 10 % of the training images; labels: fine-tuned on this share of them",
        f"multiply-adds: of one image, FLOPs are twice as many; time: median of single images, {by}",
    ]


def table(made: "report.Report") -> str:
    """The report for a terminal."""
    quality, costs = (report.text_table(part(made.results)) for part in (_quality, _costs))
    notes = [f"  {note}" for note in made.notes]
    return "\n".join([_summary(made.results), "", *quality, "", *costs, "", *notes])


def page(made: "report.Report", settings: RetentionSettings) -> str:
    """The report as Markdown."""
    models = f"Student {made.model}, teacher {settings.teacher}"
    quality, costs = (report.markdown_table(part(made.results)) for part in (_quality, _costs))
    return "\n".join(
        [
            "# Retention report",
            "",
            _summary(made.results),
            "",
            f"{models}; {report.images_of(made)}; {made.seconds:,.0f} s.",
            "",
            *quality,
            "",
            *costs,
            *report.footer(made, settings),
        ]
    )


def _summary(rows: Sequence[Metrics]) -> str:
    """The report's first sentence."""
    share = _row(rows, "student")["of_teacher"]
    kept = [
        f"{share[name]:.0f} % of the teacher's {_heading(name)} accuracy"
        for name in ("knn_top1", "linear_top1")
        if name in share
    ]
    costs = [
        f"{share[name]:.0f} % of its {title}"
        for name, title in (
            ("parameters", "parameters"),
            ("gmacs", "multiply-adds"),
            ("latency_ms", "time per image"),
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


def _quality(rows: Sequence[Metrics]) -> "report.Table":
    """Top-1 of each measure, and which share of the teacher's that is."""
    names = [name for name in _row(rows, "teacher")["of_teacher"] if name not in COSTS]
    cells = []
    for row in rows:
        tops = [f"{row[name]:.1f} ({row['of_teacher'][name]:.0f} %)" for name in names]
        cells.append([TITLES[row["role"]], row["backbone"], *tops])
    return ["model", "backbone", *map(_heading, names)], cells


def _costs(rows: Sequence[Metrics]) -> "report.Table":
    cells = [
        [
            row["role"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gmacs']:.3f}",
            f"{row['latency_ms']:.2f}",
            f"{row['file_mb']:.1f}",
        ]
        for row in (_row(rows, "student"), _row(rows, "teacher"))
    ]
    return ["model", *COSTS.values()], cells


SPEC = EvaluationSpec(
    name="retention",
    settings=RetentionSettings,
    measure=measure,
    about="Retention: how much of the teacher does the student keep, and what does each cost to run?",
    example=(
        "tinyseed evaluate retention --student runs/small --teacher runs/teacher "
        "--train-data train/ --test-data test/"
    ),
    subjects=subjects,
    combine=combine,
    main="student",
    table=table,
    page=page,
    page_names=("retention.md",),
)
