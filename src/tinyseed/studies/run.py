"""Running a study: its teachers, its tuning and its cells are trained and measured one after another.

Each cell is a run folder; what is finished is skipped and what was stopped goes on, so the same command resumes a
study. The results are written anew after each cell that was measured.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tinyseed.checkpoints.load import load_model
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.data.sources import open_source
from tinyseed.engine.run_folder import RunFolder
from tinyseed.engine.runs import ViewsError
from tinyseed.engine.train import train, train_students
from tinyseed.errors import InputError, RunError, argument
from tinyseed.evaluation.knn import SPEC as KNN
from tinyseed.evaluation.linear import SPEC as LINEAR
from tinyseed.evaluation.run import evaluate
from tinyseed.evaluation.splits import open_splits
from tinyseed.files import write_json
from tinyseed.locks import LOCK, locked
from tinyseed.models.spec import RANDOM, ModelSpec
from tinyseed.progress import Progress
from tinyseed.settings.train import TrainSettings
from tinyseed.signals import Stopped
from tinyseed.studies import plot
from tinyseed.studies.base import Study
from tinyseed.studies.cells import Cell, Plan, groups
from tinyseed.studies.results import Results, write_results
from tinyseed.studies.settings import StudySettings

CONFIG = "study.json"
"""What a folder's study was begun with."""

FREE = frozenset({"out", "rows", "seeds", "dry_run"})
"""Settings in which a study that is resumed may differ from its beginning: there are then more cells, or fewer."""

COMMON = {"data": "data", "out": "out", "student": "student", "backbone": "student", "teacher": "teacher"}
"""Settings of runs that are the study's own, by the study's names: an error about them is about all cells."""


def run_study(study: Study, settings: StudySettings, *, quiet: bool = False) -> Results:
    """Train and measure all cells that are not finished yet, and leave the table, the plot, JSON and Markdown.

    Args:
        study: a record of the catalog.
        settings: the images, the budget and the folder.
        quiet: whether to show no progress.

    Returns:
        What is in results.json; cells that failed are among them.

    Raises:
        InputError: a setting, path or model is wrong, or the folder holds something else.
        RunError: the results could not be written.
        Stopped: asked to stop; the same call resumes.
    """
    plan = Plan.of(study, settings)
    _look_at_data(plan)
    with argument("out"):
        _look_at_folder(plan)
    with locked(settings.out):
        runner = Runner(plan, quiet=quiet)
        write_json(settings.out / CONFIG, {"study": study.name, "settings": settings.as_json()})
        try:
            runner.run()
        except Stopped as stopped:
            runner.write()
            remedy = "stopped; the results so far are written, and the same command resumes"
            raise Stopped(stopped.exit_code - 128, remedy) from None
        return runner.write()


@dataclass
class Runner:
    """A study in progress.

    Attributes:
        records: what is known of each cell, by its name.
        failed: why cells have failed, by their names.
        chosen: what tuning has chosen, by row.
    """

    plan: Plan
    quiet: bool = False
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        """Teachers, tuning, then all rows of one seed after the other, so that a whole table is there early."""
        if plot.missing():
            self.say(plot.missing())
        self.work(list(self.plan.teachers.values()))
        if self.plan.needs_teacher:
            self.measure_given()
        self.tune()
        for cells in self.plan.cells(self.chosen):
            self.work(cells)

    def work(self, cells: Sequence[Cell]) -> None:
        """Train and measure cells."""
        for group in groups(cells):
            self.train(group)
            for cell in group:
                if cell.name not in self.failed:
                    self.attempt([cell], lambda cell=cell: self.measure(cell))

    def train(self, group: Sequence[Cell]) -> None:
        """Train those of a group that are not finished."""
        for cell in group:
            self.failed.pop(cell.name, None)
            teacher = (
                None if cell.row is None or cell.row.teacher is None else f"teacher-{cell.row.teacher.name}"
            )
            if teacher in self.failed:
                self.fail(cell, f"its teacher failed: {self.failed[teacher]}")
        left = [cell for cell in group if not cell.finished and cell.name not in self.failed]
        if left:
            self.say(f"training {', '.join(cell.name for cell in left)}")
            self.attempt(left, lambda: self._train(left))

    def _train(self, cells: Sequence[Cell]) -> None:
        first = cells[0].settings
        if first is None:
            (cell,) = cells
            _save_random(self.plan, cell)
        elif cells[0].folder.parent.name.startswith("together-"):
            self._train_together(cells)
        else:
            train(first.replaced(resume=RunFolder(first.out).config.exists()), quiet=self.quiet)

    def _train_together(self, cells: Sequence[Cell]) -> None:
        """Train cells on the same views; those of methods that take other views follow by themselves."""
        kinds: dict[type[TrainSettings], list[Cell]] = {}
        of_runs: dict[str, TrainSettings] = {}
        for cell in cells:
            assert cell.settings is not None
            of_runs[cell.name] = cell.settings.replaced(resume=True)
            kinds.setdefault(type(cell.settings), []).append(cell)
        try:
            outcomes = train_students(of_runs, quiet=self.quiet)
        except ViewsError:
            if len(kinds) == 1:
                raise
            for of_kind in kinds.values():
                self.attempt(of_kind, partial(self._train_together, of_kind))
            return
        for cell in cells:
            outcome = outcomes[cell.name]
            if isinstance(outcome, RunError):
                self.fail(cell, str(outcome))

    def measure(self, cell: Cell) -> None:
        """k-NN and linear probe of a cell; a finished evaluation is read."""
        new = not all(_report(cell.folder, spec.name).is_file() for spec in (KNN, LINEAR))
        measured = self._measured(str(cell.folder), cell.folder)
        self.records[cell.name] = {
            "name": cell.name,
            "row": None if cell.row is None else cell.row.name,
            "seed": cell.seed,
            "chosen": dict(cell.chosen),
            "folder": str(cell.folder),
            **measured,
            **_training(cell),
        }
        if new:
            self.say(
                f"{cell.name}: k-NN {measured['knn_top1']:.1f} %, linear {measured['linear_top1']:.1f} %"
            )
            self.write()

    def measure_given(self) -> None:
        """The teacher that is given, as a reference."""
        teacher, folder = self.plan.settings.teacher, self.plan.settings.out / "teacher"
        arch = self.plan.common.get("teacher_arch")
        try:
            measured = self._measured(teacher, folder, **({} if arch is None else {"model_arch": arch}))
        except (InputError, RunError) as error:
            with argument("teacher"):
                if isinstance(error, InputError) and error.argument in (None, "model"):
                    raise InputError(error.value, error.remedy) from error
            raise
        self.records["teacher"] = {"name": "teacher", "row": None, "model": teacher, **measured}

    def _measured(self, model: str, folder: Path, **further: Any) -> dict[str, float]:  # noqa: ANN401
        """k-NN and linear top-1 of a model; reports in this folder are read."""
        data = {"train_data": _labeled(self.plan.settings), "test_data": self.plan.settings.test_data}
        size = self.plan.common.get("image_size", "auto")
        metrics: dict[str, float] = {}
        for spec in (KNN, LINEAR):
            path = _report(folder, spec.name)
            if not path.is_file():
                evaluate(spec, spec.settings(model=model, out=folder, image_size=size, **data, **further))
            report = json.loads(path.read_text(encoding="utf-8"))
            metrics[f"{spec.name}_top1"] = report["results"][0]["top1"]
        return metrics

    def tune(self) -> None:
        """Choose each row's settings, one after the other, by k-NN on the images that its runs hold out."""
        axes = {row.name: self.plan.tuned_in(row) for row in self.plan.rows}
        self.chosen = {name: {} for name, of_row in axes.items() if of_row}
        for stage in range(max(map(len, axes.values()), default=0)):
            tried = {
                row.name: {
                    str(value): self.plan.cell(
                        row, self.plan.settings.seed, self.chosen[row.name] | {name: value}
                    )
                    for value in values
                }
                for row in self.plan.rows
                for name, values in axes[row.name][stage : stage + 1]
            }
            for group in groups([cell for cells in tried.values() for cell in cells.values()]):
                self.train(group)
            for row_name, cells in tried.items():
                self.chosen[row_name] = dict(max(cells.values(), key=self._held_out).chosen)
                self.say(f"{row_name}: {_words(self.chosen[row_name])} is best on the held-out images")

    def _held_out(self, cell: Cell) -> float:
        """k-NN top-1 on the images that a run holds out; a failed one is the worst."""
        if cell.name in self.failed:
            return -1.0
        return json.loads((cell.folder / "summary.json").read_text(encoding="utf-8")).get("knn_top1", -1.0)

    def attempt(self, cells: Sequence[Cell], work: Callable[[], object]) -> None:
        """Do something for cells; an error ends them only, unless it is about all cells."""
        try:
            work()
        except InputError as error:
            own_teacher = any(cell.row is not None and cell.row.teacher is not None for cell in cells)
            if error.argument in COMMON and not (error.argument == "teacher" and own_teacher):
                error.rename(None, COMMON)
                raise
            for cell in cells:
                self.fail(cell, str(error))
        except RunError as error:
            for cell in cells:
                self.fail(cell, str(error))

    def fail(self, cell: Cell, reason: str) -> None:
        """Note why a cell has failed."""
        self.failed[cell.name] = reason
        self.say(f"{cell.name}: failed: {reason}")

    def say(self, line: str) -> None:
        """Show a line that stays."""
        Progress(quiet=self.quiet).say(line)

    def write(self) -> Results:
        """Write what is known so far."""
        results = Results.of(self.plan, list(self.records.values()), self.failed, self.chosen)
        write_results(results, self.plan.settings.out, self.plan.study.axis)
        return results


def _look_at_data(plan: Plan) -> None:
    """Look at the images before anything is trained.

    Raises:
        InputError: a path is wrong, or labels are missing.
    """
    settings = plan.settings
    with argument("data"):
        source = open_source(settings.data)
    if settings.tune and source.labels is None:
        remedy = "rows are tuned by k-NN on held-out images, and these have no labels; leave it out"
        raise InputError(" ".join(settings.tune), remedy, argument="tune")
    with argument(train_data="train_data" if settings.train_data else "data"):
        open_splits(KNN.settings(model="", train_data=_labeled(settings), test_data=settings.test_data))


def _look_at_folder(plan: Plan) -> None:
    """Look whether the folder is new, or that of this study with these settings.

    Raises:
        InputError: it is not.
    """
    out, path = plan.settings.out, plan.settings.out / CONFIG
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(each.name != LOCK for each in out.iterdir())):
            raise InputError(out, "holds other files; give a new folder")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["study"] != plan.study.name:
        raise InputError(out, f"holds the study {before['study']}; give another folder")
    for name, now in json.loads(json.dumps(plan.settings.as_json())).items():
        then = before["settings"].get(name)
        if name not in FREE and now != then:
            remedy = f"the study in {out} was begun with {_shown(then)}; give that, or another `out`"
            raise InputError(_shown(now), remedy, argument=name)


def _labeled(settings: StudySettings) -> tuple[str, ...]:
    return settings.train_data or settings.data


def _save_random(plan: Plan, cell: Cell) -> None:
    """Write a network with the random weights that a run with this seed begins with."""
    encoder = load_model(
        ModelSpec(
            f"{RANDOM}{plan.student}",
            seed=cell.seed,
            image_size=plan.common.get("image_size"),
            small_stem=plan.common.get("small_stem", False),
        )
    )
    save_encoder(cell.folder, encoder, metadata={"method": "random init"})


def _training(cell: Cell) -> dict[str, Any]:
    """What a cell's training took, and what its summary says of it."""
    if cell.settings is None:
        return {}
    summary = json.loads((cell.folder / "summary.json").read_text(encoding="utf-8"))
    wanted = {
        "minutes",
        "steps",
        "epochs",
        "parameters",
        "parameters_teacher",
        "effective_rank",
        "neighbour_agreement",
    }
    held_out = {"held_out_knn_top1": summary["knn_top1"]} if "knn_top1" in summary else {}
    kept = {name: value for name, value in summary.items() if name in wanted}
    return {**kept, **held_out, "images": summary["steps"] * cell.settings.batch_size}


def _report(folder: Path, evaluation: str) -> Path:
    return folder / f"evaluate-{evaluation}.json"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value) or "the default"


def _words(chosen: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in chosen.items())
