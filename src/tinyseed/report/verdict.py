"""Did it work? The metrics that answer it, the sentence that says it, and warnings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tinyseed.errors import references_as
from tinyseed.methods.base import MethodSpec
from tinyseed.methods.catalog import spec_of_command
from tinyseed.report.charts import percent, plain
from tinyseed.report.files import Record, RunFiles, mean, number
from tinyseed.settings.base import flag

CLEAR_GAIN = 2.0
"""Points of k-NN accuracy or agreement below which a difference counts as unclear, whatever the number of images."""

FEWEST_HELD_OUT = 12
"""With fewer held-out images all others are among an image's 10 neighbors, and agreement is 100 % by construction."""

FEWEST_DIRECTIONS, LEAST_OF_TEACHER = 2.0, 0.05
"""An effective rank below the first, or below this fraction of the teacher's, counts as a collapse."""

LONGEST_WAIT = 0.3
MOST_UNREADABLE = 0.01


@dataclass(frozen=True)
class Outcome:
    """The metrics of a run that people ask for first; None where unknown.

    k-NN and agreement are in per cent. `before` is the same network before its first step; `held_out` is the number of
    images they are measured on.
    """

    name: str
    knn: float | None
    knn_teacher: float | None
    knn_before: float | None
    agreement: float | None
    agreement_before: float | None
    rank: float | None
    rank_teacher: float | None
    loss_first: float | None
    loss_last: float | None
    images_per_s: float | None
    data_wait: float | None
    minutes: float | None
    epochs: float | None
    steps: float | None
    parameters: float | None
    parameters_teacher: float | None
    unreadable: int
    held_out: float | None
    finished: bool


@dataclass(frozen=True)
class Verdict:
    """The answer in one or two words, and in a sentence or two."""

    level: Literal["good", "doubtful", "bad", "unknown"]
    word: str
    sentence: str


def outcome(files: RunFiles) -> Outcome:
    """Take the metrics from the summary or, while there is none, from the last lines of metrics.jsonl."""
    first = next((line for line in files.evaluations if number(line, "step") == 0), {})
    last = next((line for line in reversed(files.evaluations) if number(line, "step") != 0), {})
    summary, steps = files.summary, files.steps
    losses = [loss for line in steps if (loss := number(line, "loss")) is not None]
    reached: Record = steps[-1] if steps else last
    held_out = _held_out(files)
    spec = spec_of_command(files.config.get("command"))
    few = held_out is not None and held_out < FEWEST_HELD_OUT

    def final(name: str) -> float | None:
        return _first_known(number(summary, name), number(last, name))

    def before(name: str) -> float | None:
        return _first_known(number(summary, f"{name}_random"), number(first, name))

    return Outcome(
        name="The student" if spec is None or spec.has_teacher else "The network",
        knn=final("knn_top1"),
        knn_teacher=final("knn_top1_teacher"),
        knn_before=before("knn_top1"),
        agreement=None if few else _in_percent(final("neighbour_agreement")),
        agreement_before=None if few else _in_percent(before("neighbour_agreement")),
        rank=final("effective_rank"),
        rank_teacher=final("effective_rank_teacher"),
        loss_first=losses[0] if losses else None,
        loss_last=_first_known(number(summary, "loss"), losses[-1] if losses else None),
        images_per_s=_mean(steps, "images_per_s"),
        data_wait=_mean(steps, "data_wait"),
        minutes=number(summary, "minutes"),
        epochs=_first_known(number(summary, "epochs"), number(reached, "epoch")),
        steps=_first_known(number(summary, "steps"), number(reached, "step")),
        parameters=number(summary, "parameters"),
        parameters_teacher=number(summary, "parameters_teacher"),
        unreadable=len(files.quarantine),
        held_out=held_out,
        finished=bool(summary),
    )


def _held_out(files: RunFiles) -> float | None:
    """Images that a run was evaluated on: as the lineage says, or what training left of the data."""
    data = files.lineage.get("data")
    if not isinstance(data, dict):
        return None
    stated, images, trained_on = (number(data, name) for name in ("held_out_images", "images", "trained_on"))
    if stated is None and (images is None or trained_on is None or files.config.get("val_data")):
        return None
    left = stated if stated is not None else (images or 0.0) - (trained_on or 0.0)
    return min(left, number(files.config, "validation_images") or left)


def _first_known(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _in_percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _mean(steps: tuple[Record, ...], name: str) -> float | None:
    """Without the first line, which includes the start of the workers and of the libraries."""
    values = [value for line in steps if (value := number(line, name)) is not None]
    return mean(values[1:] or values)


def _few(found: Outcome) -> bool:
    return found.held_out is not None and found.held_out < FEWEST_HELD_OUT


def collapsed(found: Outcome) -> bool:
    """Whether the features point into nearly one direction."""
    if found.rank is None:
        return False
    of_teacher = found.rank_teacher is not None and found.rank < LEAST_OF_TEACHER * found.rank_teacher
    return found.rank < FEWEST_DIRECTIONS or of_teacher


def verdict(found: Outcome) -> Verdict:
    """Judge by k-NN where there are labels, otherwise by the teacher's neighbors; never by the loss."""
    if collapsed(found):
        return Verdict(
            "bad",
            "Collapsed",
            f"{found.name} gives nearly the same features for every image. {_summary(found)}",
        )
    for value, before in ((found.knn, found.knn_before), (found.agreement, found.agreement_before)):
        if value is not None and before is not None:
            return _compared(found, value, before)
    if found.knn is not None or found.agreement is not None:
        return Verdict(
            "unknown", "Measured", f"{_summary(found)} The network was not measured before training."
        )
    if found.loss_last is not None and found.loss_first is not None:
        change = f"The loss went from {plain(found.loss_first)} to {plain(found.loss_last)}"
        unclear = (
            "which does not tell whether anything was learned: nothing was evaluated on held-out images."
        )
        return Verdict("unknown", "Not measured", f"{change}, {unclear}")
    return Verdict("unknown", "No metrics yet", "This folder holds no metrics of a run.")


def _compared(found: Outcome, value: float, before: float) -> Verdict:
    chance = may_be_chance(value, before, found.held_out)
    if abs(value - before) < chance:
        images = "" if found.held_out is None else f" With {found.held_out:,.0f} held-out images"
        doubt = f"{images}, {chance:.1f} points either way may be chance." if images else ""
        return Verdict("doubtful", "No clear gain", _summary(found) + doubt)
    if value < before:
        return Verdict("bad", "Worse than before training", _summary(found))
    return Verdict("good", "It learned" if found.finished else "It is learning", _summary(found))


def may_be_chance(value: float, before: float, images: float | None) -> float:
    """Points of difference that may be due to chance: two standard errors of a percentage of this many images.

    Both percentages are of the same images, so their difference is less uncertain than that of two samples.

    >>> round(may_be_chance(50, 50, 100), 1), may_be_chance(50, 50, 1_000_000), may_be_chance(50, 50, None)
    (10.0, 2.0, 2.0)
    """
    if not images:
        return CLEAR_GAIN
    share = min(max((value + before) / 200, 0.0), 1.0)
    return max(CLEAR_GAIN, 200 * math.sqrt(share * (1 - share) / images))


def _summary(found: Outcome) -> str:
    """The metrics in words."""
    sentences = []
    if found.knn is not None:
        images = f"{percent(found.knn)} of the held-out images"
        sentence = f"{found.name} predicts the class of {images} from their neighbors"
        beside = ", ".join(_beside(found, found.knn))
        sentences.append(f"{sentence} (k-NN){': ' if beside else ''}{beside}.")
    if found.agreement is not None:
        first = (
            "" if found.agreement_before is None else f" (before training: {percent(found.agreement_before)})"
        )
        sentences.append(
            f"{found.name} shares {percent(found.agreement)} of its teacher's nearest neighbors{first}."
        )
    if found.parameters and found.parameters_teacher and found.parameters < found.parameters_teacher:
        times = f"{found.parameters_teacher / found.parameters:.3g}"
        sentences.append(
            f"It has {plain(found.parameters)} parameters, {times} times fewer than its teacher."
        )
    return " ".join(sentences)


def _beside(found: Outcome, knn: float) -> Iterator[str]:
    """k-NN accuracy beside what it was before training and what the teacher's is."""
    if found.knn_before is not None:
        gain = knn - found.knn_before
        more = "more" if gain >= 0 else "fewer"
        yield f"{abs(gain):.1f} points {more} than before training ({percent(found.knn_before)})"
    if found.knn_teacher:
        share = percent(round(100 * knn / found.knn_teacher))
        yield f"{share} of its teacher's accuracy ({percent(found.knn_teacher)})"


def warnings(files: RunFiles, found: Outcome) -> Iterator[str]:
    """What people should know before they use the model, and what would help."""
    if collapsed(found) and found.rank is not None:
        teacher = "" if found.rank_teacher is None else f" (the teacher's: {found.rank_teacher:.1f})"
        spec = spec_of_command(files.config.get("command"))
        hint = MethodSpec.collapse_hint if spec is None else spec.collapse_hint
        yield (
            f"The effective rank of the features is {found.rank:.1f}{teacher}: the model has collapsed. "
            f"{references_as(hint, flag)} may help; do not use this model."
        )
    if found.rank_teacher is not None and found.rank_teacher < FEWEST_DIRECTIONS and not _few(found):
        yield (
            f"The teacher gives nearly the same features for every held-out image (effective rank "
            f"{found.rank_teacher:.1f}): are its weights trained, and do these images differ?"
        )
    if found.knn is not None and found.knn_before is not None and found.knn < found.knn_before:
        asked = "Is the teacher good on these images? " if found.name == "The student" else ""
        yield (
            f"k-NN accuracy is {found.knn_before - found.knn:.1f} points below that before training. "
            f"{asked}Is --lr too high? Did the run last long enough?"
        )
    if found.data_wait is not None and found.data_wait > LONGEST_WAIT:
        yield (
            f"The run waited for images {percent(round(100 * found.data_wait))} of the time: "
            "more --workers, smaller files or a faster disk would make it faster."
        )
    if any("loss" in line and number(line, "loss") is None for line in files.steps):
        yield "The loss was not finite in some steps; a lower --lr or --precision 32 may help."
    images = _images(files)
    if images and found.unreadable > MOST_UNREADABLE * images:
        yield f"{percent(100 * found.unreadable / images)} of the images could not be read; they are listed below."


def _images(files: RunFiles) -> float | None:
    data = files.lineage.get("data")
    return number(data, "images") if isinstance(data, dict) else None
