"""The cells of a study: which runs its rows come to, where their folders are, and which of them train together."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyseed.errors import MISSING, InputError
from tinyseed.files import digest
from tinyseed.methods import catalog
from tinyseed.methods.base import MethodSpec
from tinyseed.settings.several import own_settings
from tinyseed.settings.train import FREE_ON_RESUME, DistillSettings, TrainSettings
from tinyseed.studies.base import Pretraining, Row, Study
from tinyseed.studies.settings import Budget, StudySettings, budget_of, has, set_values, texts_of, values_of

RUNS = "runs"
"""Folder of the runs in the study's."""


@dataclass(frozen=True)
class Cell:
    """A run of a row with a seed, or of a teacher.

    Attributes:
        name: the last part of its folder.
        folder: its run folder.
        settings: of its run; None: random init.
        row: what it is of; None: a teacher.
        seed: of all its random choices.
        chosen: settings that tuning has chosen, or tries.
    """

    name: str
    folder: Path
    settings: TrainSettings | None
    row: Row | None
    seed: int
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether its model is there."""
        model = "student.safetensors" if self.settings is None else catalog.spec_of(self.settings).model_file
        needed = [model] if self.settings is None else [model, "summary.json", "report.html"]
        return all((self.folder / name).is_file() for name in needed)


@dataclass(frozen=True)
class Plan:
    """What a study trains with given settings."""

    study: Study
    settings: StudySettings

    @classmethod
    def of(cls, study: Study, settings: StudySettings) -> "Plan":
        """The plan of a study.

        Raises:
            InputError: a setting is wrong, a row is unknown, or there is no teacher.
        """
        settings.check()
        known = [row.name for row in study.rows]
        for name in settings.rows:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                remedy = f"did you mean {close[0]}?" if close else f"give some of {', '.join(known)}"
                raise InputError(name, f"{study.name} has no such row; {remedy}", argument="rows")
        plan = cls(study, settings)
        if plan.needs_teacher and not settings.teacher:
            raise InputError(MISSING, "give the network that the students learn from", argument="teacher")
        plan.check()
        return plan

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The rows to train."""
        wanted = self.settings.rows or [row.name for row in self.study.rows]
        return tuple(row for row in self.study.rows if row.name in wanted)

    @property
    def needs_teacher(self) -> bool:
        """Whether a row learns from the teacher that is given."""
        return any(
            row.method is not None and row.teacher is None and _spec(row.method).has_teacher
            for row in self.rows
        )

    @property
    def budget(self) -> Budget:
        """Of each cell."""
        return budget_of(self.settings.budget or self.study.budget)

    @property
    def teacher_budget(self) -> Budget:
        """Of each teacher that the study trains."""
        return budget_of(self.settings.teacher_budget) if self.settings.teacher_budget else self.budget

    @property
    def student(self) -> str:
        """Network of the rows."""
        return self.settings.student or self.study.student

    @property
    def seeds(self) -> range:
        """Seed of each run of a row."""
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)

    @cached_property
    def kinds(self) -> tuple[type[TrainSettings], ...]:
        """The kinds of settings of the rows and teachers."""
        methods = [row.method for row in self.rows if row.method is not None]
        methods += [row.teacher.method for row in self.rows if row.teacher is not None]
        return tuple(_spec(method).settings for method in dict.fromkeys(methods))

    @cached_property
    def common(self) -> dict[str, Any]:
        """The study's settings for all runs, and those that are given."""
        return {**self.study.common, **set_values(texts_of(self.settings.set, "set"), self.kinds)}

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """What every row is tuned in."""
        return values_of(texts_of(self.settings.tune, "tune"), self.kinds, "tune")

    def tuned_in(self, row: Row) -> list[tuple[str, list[Any]]]:
        """The settings that a row is tuned in, one after another; its own one comes last, with as many values."""
        if row.method is None or not self.axes:
            return []
        kind = _spec(row.method).settings
        found = [(name, values) for name, values in self.axes.items() if has(kind, name)]
        if row.own is not None and row.own[0] not in self.axes:
            name, values = row.own
            found.append((name, list(values[: max(map(len, self.axes.values()))])))
        return found

    @cached_property
    def teachers(self) -> dict[str, Cell]:
        """The teachers that the study trains, by name."""
        wanted = {row.teacher.name: row.teacher for row in self.rows if row.teacher is not None}
        return {name: self._teacher(teacher) for name, teacher in wanted.items()}

    def cell(self, row: Row, seed: int, chosen: Mapping[str, Any] | None = None) -> Cell:
        """The run of a row."""
        chosen = chosen or {}
        name = ",".join([row.name, *(f"{key}={value}" for key, value in chosen.items()), f"seed={seed}"])
        if row.method is None:
            return Cell(name, self._runs / name, None, row, seed)
        spec = _spec(row.method)
        values = {**row.settings, **self.budget.of(row.length), **chosen}
        if spec.has_teacher:
            given = self.settings.teacher
            values["teacher"] = given if row.teacher is None else str(self.teachers[row.teacher.name].folder)
        of_run = self._settings(spec, values, self.student, seed)
        folder = self._runs
        if spec.has_teacher and self.budget.minutes is None:
            folder = folder / f"together-{digest(_shared(of_run), digits=8)}"
        of_run = of_run.replaced(out=folder / name)
        return Cell(name, of_run.out, of_run, row, seed, chosen)

    def cells(self, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[list[Cell]]:
        """The cells of each seed, with what tuning has chosen for each row."""
        for seed in self.seeds:
            yield [self.cell(row, seed, (chosen or {}).get(row.name)) for row in self.rows]

    def trials(self) -> int:
        """How many runs tuning takes; that of the first seed with what is chosen is one of them."""
        return sum(
            len(values) - (place > 0)
            for row in self.rows
            for place, (_, values) in enumerate(self.tuned_in(row))
        )

    def check(self) -> None:
        """Look at the settings of all runs before any is trained.

        Raises:
            InputError: they cannot be meant.
        """
        for cell in (*self.teachers.values(), *next(self.cells())):
            if cell.settings is not None:
                cell.settings.check()
        for row in self.rows:
            for name, values in self.tuned_in(row):
                for value in values:
                    tried = self.cell(row, self.settings.seed, {name: value}).settings
                    assert tried is not None
                    tried.check()

    @property
    def _runs(self) -> Path:
        return self.settings.out / RUNS

    def _teacher(self, teacher: Pretraining) -> Cell:
        values = {**teacher.settings, **self.teacher_budget.of(teacher.length)}
        seed, name = self.settings.seed, f"teacher-{teacher.name}"
        of_run = self._settings(_spec(teacher.method), values, teacher.backbone, seed)
        of_run = of_run.replaced(out=self._runs / name)
        return Cell(name, of_run.out, of_run, None, seed)

    def _settings(
        self, spec: MethodSpec, values: Mapping[str, Any], network: str, seed: int
    ) -> TrainSettings:
        common = {name: value for name, value in self.common.items() if has(spec.settings, name)}
        given = {"data": self.settings.data, "out": self._runs, "seed": seed, spec.settings.NETWORK: network}
        return spec.settings(**{**common, **values, **given})


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells that train together, by the folders that they have in common; others are alone."""
    found: dict[Path, list[Cell]] = {}
    for cell in cells:
        together = cell.folder.parent.name != RUNS
        found.setdefault(cell.folder.parent if together else cell.folder, []).append(cell)
    return list(found.values())


def _shared(of_run: TrainSettings) -> list[object]:
    """What decides whether runs can train together: the settings that no student has for itself.

    Those of a method alone count where they are not their defaults: small crops are other views, for instance.
    """
    left_out = own_settings(type(of_run)) | FREE_ON_RESUME - {"teacher"}
    alike = {each.name for each in fields(DistillSettings)}
    defaults = {each.name: each.default for each in fields(of_run)}
    return [
        (name, str(value))
        for name, value in sorted(of_run.as_json().items())
        if name not in left_out and (name in alike or getattr(of_run, name) != defaults[name])
    ]


def _spec(method: str) -> MethodSpec:
    return next(spec for spec in catalog.METHODS if spec.name == method)
