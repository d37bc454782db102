"""What a run says while it goes: a live line on a terminal, plain lines elsewhere. Imports nothing of tinyseed."""

import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

PLAIN_LINE_SECONDS = 30.0


@dataclass(frozen=True)
class Status:
    """Where a run is: what both displays tell."""

    step: int
    total_steps: int
    epoch: int
    loss: float
    images_per_s: float
    data_wait: float
    seconds_left: float
    knn_top1: float | None = None


class Display:
    """Tells people how a run goes; silent on all processes but the first."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.live = self.console.is_terminal and not quiet
        self.last_line = 0.0
        self.bar = Progress(BarColumn(bar_width=8), _StatusColumn(), console=self.console, transient=True)
        self.task = self.bar.add_task("", total=None)
        self.title = title

    def __enter__(self) -> "Display":
        self.say(self.title)
        if self.live:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.bar.stop()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, soft_wrap=True)

    def update(self, status: Status, *, final: bool = False) -> None:
        """Show where the run is; elsewhere than on a terminal a line now and then."""
        if self.live:
            self.bar.update(
                self.task, completed=status.step, total=status.total_steps, status=describe(status)
            )
            return
        now = time.monotonic()
        if final or now - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = now
            self.say(f"step {status.step}/{status.total_steps}  {describe(status)}")


def describe(status: Status) -> str:
    """One line on a moment of a run, within 80 columns; wait is the share of the time spent waiting for data."""
    knn = "" if status.knn_top1 is None else f"  k-NN {status.knn_top1:.1f} %"
    return (
        f"epoch {status.epoch}  loss {status.loss:.3f}  {status.images_per_s:,.0f} img/s"
        f"  wait {status.data_wait:.0%}{knn}  {duration(status.seconds_left)} left"
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, short.

    >>> duration(3725), duration(62), duration(5)
    ('1 h 02 min', '1 min 02 s', '5 s')
    """
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds_left:02d} s" if minutes else f"{seconds_left} s"


class _StatusColumn(ProgressColumn):
    def render(self, task: ProgressTask) -> Text:
        return Text(task.fields.get("status", "starting"), no_wrap=True, overflow="ellipsis")
