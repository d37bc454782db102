"""Which charts a run gets, and how each is read. Imports its own room."""

from collections.abc import Iterator
from dataclasses import dataclass

from tinyseed.report.charts import Format, Point, Role, Series, percent, plain, smooth
from tinyseed.report.files import Record, RunFiles, number, series
from tinyseed.report.verdict import Outcome

SMOOTHED_FROM = 60
"""A curve of so many lines of the log is drawn as a moving mean over the faint raw line."""


@dataclass(frozen=True)
class Curves:
    """A chart: its title, how to read it, its lines, the y axis' label and how figures are written."""

    title: str
    caption: str
    lines: tuple[Series, ...]
    label: str
    write: Format = plain
    from_zero: bool = True


def curves(files: RunFiles, found: Outcome) -> Iterator[Curves]:
    """The charts in their order on the page; one without points is left out by who draws it."""
    trained = found.name.removeprefix("The ")
    # SwAV's queue helps to make the codes; what its loss compares does not grow with it.
    queued = number(files.config, "queue_size") and files.config.get("command") != "pretrain swav"
    fills = "It rises while the queue fills, and" if queued else "It"
    yield Curves(
        "Loss",
        f"{fills} does not tell whether the features are good.",
        _smoothed("loss", series(files.steps, "loss")),
        "loss",
        from_zero=False,
    )
    yield Curves(
        "k-NN top-1",
        "Held-out images whose class the 10 nearest training images tell. Labels are for this figure alone.",
        _compared(files.evaluations, "knn_top1", trained, found.knn_before),
        "accuracy",
        percent,
    )
    if found.agreement is not None:
        yield Curves(
            "Neighbour agreement",
            "Share of the teacher's 10 nearest neighbours, among the held-out images, that the student has too.",
            _compared(files.evaluations, "neighbour_agreement", trained, found.agreement_before, times=100),
            "neighbours shared",
            percent,
        )
    yield Curves(
        "Effective rank",
        "How many directions the features use. Near 1 all images look the same: collapse.",
        _compared(files.evaluations, "effective_rank", trained, None),
        "directions",
    )
    yield Curves(
        "Entropy of the teacher's target",
        "In nats. 0: each image is like itself alone; log(queue size): like all images alike.",
        (Series("target entropy", series(files.evaluations, "target_entropy"), "teacher"),),
        "nats",
    )
    yield from _course(files)


def _course(files: RunFiles) -> Iterator[Curves]:
    """How the run went as a piece of work."""
    falls = "tenfold down twice" if files.config.get("schedule") == "step" else "cosine"
    yield Curves(
        "Learning rate",
        f"Warm-up, then {falls}.",
        (Series("lr", series(files.steps, "lr")),),
        "learning rate",
    )
    yield Curves(
        "Images a second",
        "Over all processes, reading and all.",
        _smoothed("images/s", series(files.steps, "images_per_s")),
        "images/s",
    )
    yield Curves(
        "Waiting for data",
        "Share of the time in which the networks stood still for want of images.",
        _smoothed("waiting", _scaled(series(files.steps, "data_wait"), 100)),
        "share of time",
        percent,
    )


def _smoothed(name: str, points: tuple[Point, ...]) -> tuple[Series, ...]:
    if len(points) < SMOOTHED_FROM:
        return (Series(name, points),)
    return Series(name, points, "raw"), Series(f"{name}, moving mean", tuple(smooth(points)))


def _compared(
    evaluations: tuple[Record, ...], figure: str, trained: str, before: float | None, times: float = 1
) -> tuple[Series, ...]:
    """The trained network beside its teacher, and beside itself before training."""
    points = _scaled(series(evaluations, figure), times)
    level: tuple[Point, ...] = () if before is None else tuple((step, before) for step, _ in points)
    lines: tuple[tuple[str, tuple[Point, ...], Role], ...] = (
        (trained, points, "student"),
        ("teacher", _scaled(series(evaluations, f"{figure}_teacher"), times), "teacher"),
        ("before training", level, "untrained"),
    )
    return tuple(Series(name, values, role) for name, values, role in lines)


def _scaled(points: tuple[Point, ...], times: float) -> tuple[Point, ...]:
    return tuple((step, times * value) for step, value in points)
