"""Settings of `tinyseed recipes run`, and what its texts mean: budgets, settings for all runs, values to tune among."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from tinyseed.errors import InputError, argument
from tinyseed.settings.base import MOST_EPOCHS, SEEDS, Range, Settings, aliases, holds
from tinyseed.settings.several import grid_of
from tinyseed.settings.train import TrainSettings


@dataclass(frozen=True, kw_only=True)
class StudySettings(Settings):
    """`tinyseed recipes run NAME`: the images, the budget of each cell, and where the results go."""

    data: tuple[str, ...]
    """Images to train on, as for `tinyseed distill`; labels are used to tune only."""
    test_data: tuple[str, ...]
    """Labeled test images, to measure each cell on."""
    out: Path
    """Folder for the runs, the table and the plot. The same command resumes what was stopped, and skips what is
    finished."""
    train_data: tuple[str, ...] = ()
    """Labeled training images of k-NN and the linear probe. By default `data`."""
    budget: str = ""
    """Of each cell: minutes as in 5min (each is trained by itself, for equal wall time), or epochs as in 20epochs
    (those with the same teacher and views are trained together, and see equally many images). By default that of the
    study."""
    teacher: str = ""
    """Frozen network to learn from, for the rows that train no teacher of their own."""
    teacher_budget: str = ""
    """Of each teacher that the study trains; by default as `budget`."""
    student: str = ""
    """Network to train; by default that of the study."""
    seeds: int = 1
    """Number of runs of each row, with consecutive seeds from `seed` on. Teachers are trained once, with `seed`."""
    seed: int = 0
    """First seed."""
    rows: tuple[str, ...] = ()
    """Names of the rows to train; by default all."""
    set: tuple[str, ...] = ()
    """Settings for all runs whose method has them, as in image_size=32 small_stem=true; what a row is about stays."""
    tune: tuple[str, ...] = ()
    """Choose each row's settings first, as in lr=0.03,0.1,0.3: by k-NN on the 10 % of `data` that its runs hold out,
    with the first seed; then the row's own setting among as many values."""
    dry_run: bool = False
    """Only print the cells, their number and the expected time."""

    RANGES: ClassVar = {"seeds": Range(1, 1000), "seed": SEEDS}

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        for name in ("budget", "teacher_budget"):
            if getattr(self, name):
                with argument(name):
                    budget_of(getattr(self, name))
        texts_of(self.set, "set")
        texts_of(self.tune, "tune")


@dataclass(frozen=True)
class Budget:
    """What a cell may take: minutes, or epochs."""

    minutes: float | None = None
    epochs: int | None = None

    def of(self, length: float) -> dict[str, Any]:
        """The settings of a run that takes so many times the budget."""
        if self.minutes is not None:
            return {"max_minutes": self.minutes * length}
        assert self.epochs is not None
        return {"epochs": max(1, round(self.epochs * length))}

    def __str__(self) -> str:
        return f"{self.epochs} epochs" if self.minutes is None else f"{self.minutes:g} min"


def budget_of(text: str) -> Budget:
    """A budget from its text.

    Raises:
        InputError: it is neither minutes nor epochs, or nothing.

    >>> budget_of("2.5min"), budget_of("1epoch")
    (Budget(minutes=2.5, epochs=None), Budget(minutes=None, epochs=1))
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(min|minutes?|epochs?)", text.strip())
    if found is None:
        raise InputError(text, "give minutes as in 5min, or epochs as in 20epochs")
    number, minutes = float(found[1]), found[2].startswith("min")
    if number == 0 or (not minutes and (number not in MOST_EPOCHS or number % 1)):
        raise InputError(text, "give minutes above 0 as in 5min, or a whole number of epochs as in 20epochs")
    return Budget(minutes=number) if minutes else Budget(epochs=int(number))


def texts_of(assignments: Sequence[str], name: str) -> dict[str, list[str]]:
    """The words of `set` or `tune` by the names of settings.

    Raises:
        InputError: a word is not NAME=VALUE, or the study itself decides the setting.
    """
    with argument(grid=name):
        texts = grid_of(assignments)
    for setting in texts:
        if setting in DECIDED:
            raise InputError(setting, f"the study decides it; {DECIDED[setting]}", argument=name)
    return texts


DECIDED = {
    "data": "give `data`",
    "out": "give `out`",
    "seed": "give `seed` and `seeds`",
    "teacher": "give `teacher`",
    "student": "give `student`",
    "backbone": "give `student`",
    "epochs": "give `budget`",
    "max_minutes": "give `budget`",
    "resume": "the same command resumes",
    "recipe": "leave it out",
}
"""Settings that are no business of `set` and `tune`, and what to do instead."""


def values_of(
    texts: Mapping[str, Sequence[str]], kinds: Sequence[type[TrainSettings]], name: str
) -> dict[str, list[Any]]:
    """The values of texts by setting, as the first of these kinds of settings that has it holds them.

    Raises:
        InputError: no kind has such a setting, or a text is not of its type.
    """
    values: dict[str, list[Any]] = {}
    for setting, words in texts.items():
        kind = next((kind for kind in kinds if has(kind, setting)), None)
        if kind is None:
            known = sorted({field.name for each in kinds for field in dataclasses.fields(each)})
            close = difflib.get_close_matches(setting, known, n=1)
            found = f"; did you mean {close[0]}?" if close else ""
            raise InputError(setting, f"no row has such a setting{found}", argument=name)
        full = aliases(kind).get(setting, setting)
        hint = get_type_hints(kind)[full]
        values[full] = [_value(word, hint, f"{setting}={','.join(words)}", name) for word in words]
    return values


def has(kind: type[TrainSettings], setting: str) -> bool:
    """Whether a kind of settings has one of this name."""
    return setting in {field.name for field in dataclasses.fields(kind)} | aliases(kind).keys()


def set_values(texts: Mapping[str, Sequence[str]], kinds: Sequence[type[TrainSettings]]) -> dict[str, Any]:
    """The settings of `set`; several values are those of one setting that holds several.

    Raises:
        InputError: as `values_of`, or there are several values for a setting that holds one.
    """
    chosen: dict[str, Any] = {}
    for setting, values in values_of(texts, kinds, "set").items():
        kind = next(kind for kind in kinds if has(kind, setting))
        if get_origin(get_type_hints(kind)[setting]) is tuple:
            chosen[setting] = tuple(values)
        elif len(values) == 1:
            chosen[setting] = values[0]
        else:
            given = ",".join(map(str, values))
            raise InputError(f"{setting}={given}", "give one value", argument="set")
    return chosen


def _value(text: str, hint: Any, given: str, name: str) -> Any:  # noqa: ANN401  (types are values here)
    if get_origin(hint) is tuple:
        hint = get_args(hint)[0]
    for reading in (int, float, _switch, str):
        try:
            value = reading(text)
        except ValueError:
            continue
        if holds(value, hint):
            return Path(text) if reading is str and Path in (hint, *get_args(hint)) else value
    raise InputError(given, f"{text or 'nothing'} is not a value of this setting", argument=name)


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"
