"""Several runs of one command: their folders in a common one, its index, and the table of how they ended.

The index, runs.json, says in what the runs differ and how far each is. Each folder is that of a single run: it can be
resumed, evaluated and moved by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tinyseed.engine.run import Run
from tinyseed.engine.run_folder import Metrics, RunFolder
from tinyseed.errors import InputError, RunError
from tinyseed.files import is_unfinished, read_json, write_json
from tinyseed.locks import LOCK
from tinyseed.methods.catalog import spec_of
from tinyseed.settings.train import TrainSettings

RUNS = "runs.json"
"""Name of the index."""

KEY_METRICS = ("parameters", "loss", "knn_top1", "neighbour_agreement", "effective_rank")
"""Metrics of summary.json that the index repeats."""


class Index:
    """The folder of several runs.

    Attributes:
        out: the folder.
        settings: of each run by its name, the last part of its own folder.
    """

    def __init__(self, settings: Mapping[str, TrainSettings]) -> None:
        self.settings = settings
        self.first = next(iter(settings.values()))
        self.out = self.first.out.parent
        self._path = self.out / RUNS

    def look(self) -> None:
        """Look at the folder before anything is loaded; writes nothing.

        Raises:
            InputError: it holds a single run or other files, or runs that are not to be resumed.
        """
        out = self.out
        if not out.is_dir():
            return  # each run looks whether its own folder can be made
        if RunFolder(out).config.exists():
            raise InputError(out, "holds a single run; give another folder for several", argument="out")
        if self._path.exists():
            if not self.first.resume:
                raise InputError(
                    out, "holds other runs; resume them with `resume`, or give another folder", argument="out"
                )
            return
        begun = {of_run.out.name for of_run in self.settings.values()} if self.first.resume else set()
        if any(path.name not in {LOCK, *begun} and not is_unfinished(path) for path in out.iterdir()):
            raise InputError(out, "is a folder with other files; give a new one", argument="out")

    def finished(self) -> dict[str, Metrics]:
        """The metrics of those runs that are finished already.

        Raises:
            InputError: all of them are.
        """
        found: dict[str, Metrics] = {}
        for name, of_run in self.settings.items():
            folder = RunFolder(of_run.out)
            if of_run.resume and folder.summary.exists() and not folder.missing(spec_of(of_run).model_file):
                found[name] = read_json(folder.summary) or {}
        if len(found) == len(self.settings):
            remedy = "these runs are finished; give another `out` to train again"
            raise InputError(self.out, remedy, argument="resume")
        return found

    def write(self, runs: Sequence[Run], *, ended: bool = False) -> None:
        """Write how far the runs are.

        Args:
            runs: those in progress.
            ended: whether nothing goes on.

        Raises:
            RunError: it cannot be written.
        """
        entries = {entry.get("name"): entry for entry in self._before()}
        for name, of_run in self.settings.items():
            metrics = read_json(RunFolder(of_run.out).summary) or {}
            entries[name] = {
                "name": name,
                "settings": self._own(of_run),
                "state": "finished" if metrics else "stopped",
                **{key: metrics[key] for key in KEY_METRICS if key in metrics},
            }
        for run in runs:
            entries[run.log.name] |= _progress(run, ended=ended)
        write_json(self._path, {"runs": list(entries.values())})

    def _own(self, of_run: TrainSettings) -> dict[str, Any]:
        """The settings in which the runs differ, their methods among them, and the network."""
        every = [self._described(each) for each in self.settings.values()]
        return {
            name: value
            for name, value in self._described(of_run).items()
            if name != "out"
            and (name == of_run.NETWORK or any(each.get(name, value) != value for each in every))
        }

    @staticmethod
    def _described(of_run: TrainSettings) -> dict[str, Any]:
        """The settings of a run, and its method; methods have different settings."""
        return {"method": spec_of(of_run).name, **of_run.as_json()}

    def _before(self) -> list[dict[str, Any]]:
        """The entries of an earlier part of the runs."""
        entries = (read_json(self._path) or {}).get("runs")
        return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _cell(metrics: Metrics, name: str, write: Callable[[float], str]) -> str:
    value = metrics.get(name)
    return "–" if value is None else write(value)


def _progress(run: Run, *, ended: bool) -> dict[str, Any]:
    if run.error is not None:
        return {"state": "failed", "step": run.step, "error": str(run.error)}
    if run.summary is not None:
        return {"state": "finished", "step": run.step}
    return {"state": "stopped" if ended else "running", "step": run.step}


def table(settings: Mapping[str, TrainSettings], outcomes: Mapping[str, Metrics | RunError]) -> str:
    """The runs and their key metrics, as lines of text."""
    rows = [("run", "parameters", "k-NN", "agreement", "rank", "folder")]
    for name, outcome in outcomes.items():
        metrics = {} if isinstance(outcome, RunError) else outcome
        cells = (
            _cell(metrics, "parameters", lambda value: f"{value / 1e6:.1f} M"),
            _cell(metrics, "knn_top1", lambda value: f"{value:.1f} %"),
            _cell(metrics, "neighbour_agreement", lambda value: f"{100 * value:.1f} %"),
            _cell(metrics, "effective_rank", lambda value: f"{value:.1f}"),
        )
        state = str(settings[name].out) if metrics else f"failed ({settings[name].out})"
        rows.append((name, *cells, state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
