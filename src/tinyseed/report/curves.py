"""Which charts a run gets, and how to read each of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from tinyseed.methods.catalog import spec_of_command
from tinyseed.report.charts import Format, Point, Role, Series, percent, plain, smooth
from tinyseed.report.files import Record, RunFiles, series
from tinyseed.report.verdict import Outcome

SMOOTHED_FROM = 60
"""A curve with at least this many points is drawn as a moving mean over the faint raw line."""


@dataclass(frozen=True)
class Curves:
    """A chart: its title, how to read it, its lines, the y axis' label and the format of its values."""

    title: str
    caption: str
    lines: tuple[Series, ...]
    label: str
    write: Format = plain
    from_zero: bool = True


def curves(files: RunFiles, found: Outcome) -> Iterator[Curves]:
    """The charts in their order on the page; one without points is left out where it is drawn."""
    trained = found.name.removeprefix("The ")
    yield _loss(files)
    yield Curves(
        "k-NN top-1",
        "Held-out images whose class the 10 nearest training images predict. Labels are used for this metric only.",
        _compared(files.evaluations, "knn_top1", trained, found.knn_before),
        "accuracy",
        percent,
    )
    if found.agreement is not None:
        yield Curves(
            "Neighbor agreement",
            "Fraction of the teacher's 10 nearest neighbors among the held-out images that the student has, too.",
            _compared(files.evaluations, "neighbour_agreement", trained, found.agreement_before, times=100),
            "neighbors shared",
            percent,
        )
    yield Curves(
        "Effective rank",
        "Number of directions that the features use. Near 1 all images get the same features: collapse.",
        _compared(files.evaluations, "effective_rank", trained, None),
        "directions",
    )
    yield Curves(
        "Entropy of the teacher's target",
        "In nats. 0: each image is similar to itself only; log(queue size): equally similar to all images.",
        (Series("target entropy", series(files.evaluations, "target_entropy"), "teacher"),),
        "nats",
    )
    yield from _course(files)


def _loss(files: RunFiles) -> Curves:
    spec = spec_of_command(files.config.get("command"))
    note = "The loss does not tell whether the features are good." if spec is None else spec.loss_note
    return Curves("Loss", note, _smoothed("loss", series(files.steps, "loss")), "loss", from_zero=False)


def _course(files: RunFiles) -> Iterator[Curves]:
    """How the run itself went."""
    falls = "division by ten, twice" if files.config.get("schedule") == "step" else "cosine"
    yield Curves(
        "Learning rate",
        f"Warm-up, then {falls}.",
        (Series("lr", series(files.steps, "lr")),),
        "learning rate",
    )
    yield Curves(
        "Images per second",
        "Over all processes, data loading included.",
        _smoothed("images/s", series(files.steps, "images_per_s")),
        "images/s",
    )
    yield Curves(
        "Waiting for data",
        "Fraction of the time in which the networks waited for images.",
        _smoothed("waiting", _scaled(series(files.steps, "data_wait"), 100)),
        "fraction of time",
        percent,
    )


def _smoothed(name: str, points: tuple[Point, ...]) -> tuple[Series, ...]:
    if len(points) < SMOOTHED_FROM:
        return (Series(name, points),)
    return Series(name, points, "raw"), Series(f"{name}, moving mean", tuple(smooth(points)))


def _compared(
    evaluations: tuple[Record, ...], metric: str, trained: str, before: float | None, times: float = 1
) -> tuple[Series, ...]:
    """The trained network beside its teacher and beside its random init."""
    points = _scaled(series(evaluations, metric), times)
    level: tuple[Point, ...] = () if before is None else tuple((step, before) for step, _ in points)
    lines: tuple[tuple[str, tuple[Point, ...], Role], ...] = (
        (trained, points, "student"),
        ("teacher", _scaled(series(evaluations, f"{metric}_teacher"), times), "teacher"),
        ("before training", level, "untrained"),
    )
    return tuple(Series(name, values, role) for name, values, role in lines)


def _scaled(points: tuple[Point, ...], times: float) -> tuple[Point, ...]:
    return tuple((step, times * value) for step, value in points)
