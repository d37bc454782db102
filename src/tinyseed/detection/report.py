"""The report of `evaluate detect`: typed results, the table for a terminal and the Markdown page."""

from dataclasses import dataclass
from typing import Literal

from tinyseed.detection.settings import DetectSettings
from tinyseed.evaluation.base import Metrics
from tinyseed.evaluation.report import Report, Table, footer, markdown_table, text_table


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's average precision in per cent: over overlaps .5 to .95, at .5, at .75.

    Attributes:
        per_class: `ap` of each class; None for a class that is not in the test images.
    """

    ap: float
    ap50: float
    ap75: float
    per_class: dict[str, float | None]


@dataclass(frozen=True)
class DetectResult:
    """The metrics of one start point.

    Attributes:
        start: its name as given; "random" is the network of the model with random weights.
        backbone: its network.
        box, mask: average precision; `mask` is None without masks.
        loss_first, loss_last: mean loss of the first and the last twentieth of the steps.
        seconds: of training.
    """

    start: str
    backbone: str
    box: AveragePrecision
    mask: AveragePrecision | None
    loss_first: float
    loss_last: float
    seconds: float

    @classmethod
    def of(cls, row: Metrics) -> "DetectResult":
        """The typed form of a row of metrics."""
        mask = None if row["mask"] is None else AveragePrecision(**row["mask"])
        return cls(**row | {"box": AveragePrecision(**row["box"]), "mask": mask})


@dataclass(frozen=True, kw_only=True)
class DetectReport(Report):
    """What evaluate-detect.json holds.

    Attributes:
        image_size: short sides of the images in pixels.
        classes: their names.
        results: one for each start point.
        train_boxes, test_boxes: numbers of instances, including crowds.
        steps: of each training.
        lr: learning rate after the warm-up, scaled to the batch.
    """

    image_size: tuple[int, ...]  # pyright: ignore[reportIncompatibleVariableOverride]
    classes: tuple[str, ...]  # pyright: ignore[reportIncompatibleVariableOverride]
    results: tuple[DetectResult, ...]  # pyright: ignore[reportIncompatibleVariableOverride]
    format: Literal["voc", "coco"]
    train_boxes: int
    test_boxes: int
    schedule: str
    steps: int
    batch_size: int
    lr: float
    norm: Literal["frozen", "trained"]
    masks: bool
    seed: int


def table(report: DetectReport) -> str:
    """The metrics for a terminal."""
    names, cells = _scores(report)
    rows = [[result.start, *scores] for result, scores in zip(report.results, cells, strict=True)]
    lines = text_table((["start", *names], rows))
    return "\n".join([_summary(report), *lines, *(f"  {note}" for note in report.notes)])


def page(report: DetectReport, settings: DetectSettings) -> str:
    """The metrics, the loss and the scores by class, in Markdown."""
    names, cells = _scores(report)
    head = ["start", "backbone", *names, "loss, first → last steps", "minutes"]
    rows = [
        [result.start, result.backbone, *scores, _loss(result), f"{result.seconds / 60:.1f}"]
        for result, scores in zip(report.results, cells, strict=True)
    ]
    lines = ["# Detection", "", f"{_summary(report)}.", "", *markdown_table((head, rows))]
    lines += ["", "Box AP by class:", "", *markdown_table(_by_class(report))]
    return "\n".join([*lines, *footer(report, settings)])


def _summary(report: DetectReport) -> str:
    kind = "Mask R-CNN" if report.masks else "Faster R-CNN"
    return (
        f"{kind}, {report.steps:,} steps of {report.batch_size} images at {max(report.image_size)} px, "
        f"{report.norm} norms: {report.train_images:,} training images, {report.test_images:,} test images"
    )


def _scores(report: DetectReport) -> Table:
    names = ["box AP", "AP50", "AP75", *(["mask AP", "AP50", "AP75"] if report.masks else [])]
    cells = []
    for result in report.results:
        parts = [part for part in (result.box, result.mask) if part is not None]
        cells.append([f"{value:.1f}" for part in parts for value in (part.ap, part.ap50, part.ap75)])
    return names, cells


def _loss(result: DetectResult) -> str:
    return f"{result.loss_first:.2f} → {result.loss_last:.2f}"


def _by_class(report: DetectReport) -> Table:
    rows = []
    for name in report.classes:
        values = [result.box.per_class[name] for result in report.results]
        rows.append(
            [name, *("not in the test images" if value is None else f"{value:.1f}" for value in values)]
        )
    return ["class", *(result.start for result in report.results)], rows
