"""The figures of `evaluate detect` for a terminal and as Markdown. Imports config.py."""

from tinyseed.evaluation.detect.config import DetectReport, DetectResult


def table(report: DetectReport) -> str:
    """The figures for a terminal, within 80 columns where the names are short."""
    names = [result.start for result in report.results]
    width = max(12, *map(len, names))
    head = f"{'start':{width}}  box AP   AP50   AP75"
    head += "  mask AP   AP50   AP75" if report.masks else ""
    lines = [_about(report), head]
    for result in report.results:
        figures = [(result.box.ap, 6), (result.box.ap50, 5), (result.box.ap75, 5)]
        if result.mask is not None:
            figures += [(result.mask.ap, 7), (result.mask.ap50, 5), (result.mask.ap75, 5)]
        lines.append(f"{result.start:{width}}" + "".join(f"  {value:{wide}.1f}" for value, wide in figures))
    return "\n".join([*lines, *(f"  {line}" for line in report.notes)])


def _about(report: DetectReport) -> str:
    kind = "Mask R-CNN" if report.masks else "Faster R-CNN"
    return (
        f"{kind}, {report.steps:,} steps of {report.batch_size} images at {max(report.image_size)} px, "
        f"{report.norm} norms: {report.train_images:,} train images, {report.test_images:,} test images"
    )


def markdown(report: DetectReport) -> str:
    """The figures, the loss, the classes, and the notes."""
    columns = ["start", "backbone", "box AP", "AP50", "AP75"]
    columns += ["mask AP", "AP50", "AP75"] if report.masks else []
    columns += ["loss, first → last steps", "minutes"]
    lines = ["# Detection", "", f"{_about(report)}.", "", _row(columns), _row(["---"] * len(columns))]
    lines += [_row(_cells(result)) for result in report.results]
    lines += ["", "Box AP by class:", "", _row(["class", *(result.start for result in report.results)])]
    lines.append(_row(["---"] * (1 + len(report.results))))
    for name in report.classes:
        values = [result.box.per_class[name] for result in report.results]
        lines.append(
            _row([name, *("not in the test images" if value is None else f"{value:.1f}" for value in values)])
        )
    if report.notes:
        lines += ["", "Notes:", "", *(f"- {line}" for line in report.notes)]
    return "\n".join(lines) + "\n"


def _cells(result: DetectResult) -> list[str]:
    parts = [result.box] if result.mask is None else [result.box, result.mask]
    figures = [f"{value:.1f}" for part in parts for value in (part.ap, part.ap50, part.ap75)]
    loss = f"{result.loss_first:.2f} → {result.loss_last:.2f}"
    return [result.start, result.backbone, *figures, loss, f"{result.seconds / 60:.1f}"]


def _row(cells: list[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
