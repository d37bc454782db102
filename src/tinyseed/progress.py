"""What long work shows on the error stream: a live line on a terminal, plain lines now and then elsewhere."""

import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from tinyseed.text import shown

if TYPE_CHECKING:
    from rich.progress import TaskID

Item = TypeVar("Item")

PLAIN_LINE_SECONDS = 30.0


class Progress:
    """Shows how far a piece of work is. Use it as a context manager, so that the live line goes away at the end.

    Attributes:
        live: whether the error stream is a terminal that shows a live line.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.live = self.console.is_terminal and not quiet
        columns = (BarColumn(bar_width=8), TextColumn("{task.description}", markup=False))
        self._bar = Bar(*columns, console=self.console, transient=True)
        self._task: TaskID | None = None
        self.begin("")

    def __enter__(self) -> "Progress":
        if self.live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:  # rich would print an empty line
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line that stays; work does not end because nobody can read how far it is (full disk, closed pipe)."""
        with suppress(OSError):
            self.console.print(shown(line), markup=False, soft_wrap=True)

    def begin(self, title: str) -> None:
        """Name the phase that follows; its time counts from here."""
        self.title = title
        self._first: int | None = None
        self._began = self._shown = time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def update(self, done: int, total: int, text: str | None = None, *, final: bool = False) -> None:
        """Show how far the phase is, where it is time to.

        Args:
            done: units of work done.
            total: units of work in all.
            text: what to show beside the count; by default the time left.
            final: print a plain line now.
        """
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now
        if not self.live and not final and now - self._shown < PLAIN_LINE_SECONDS:
            return
        self._shown = now
        line = (
            f"{self.title} {done:,}/{total:,}  {self._time_left(done, total, now) if text is None else text}"
        )
        if self.live:
            if self._task is None:
                self._task = self._bar.add_task("", total=total)
            self._bar.update(self._task, completed=done, total=total, description=shown(line.strip()))
        else:
            self.say(line.strip())

    def _time_left(self, done: int, total: int, now: float) -> str:
        first = self._first or 0
        if done <= first:
            return ""
        return f"{duration((now - self._began) / (done - first) * (total - done))} left"


def track(items: Iterable[Item], title: str, total: int, done: int = 0) -> Generator[Item, None, None]:
    """The items, while the screen shows how many are done; work shorter than half a minute is silent in a log.

    Args:
        items: what is worked through.
        title: what is being done, in a few words.
        total: how many there are in all.
        done: how many were done before.
    """
    with Progress() as progress:
        progress.begin(title)
        for count, item in enumerate(items, done + 1):
            yield item
            progress.update(count, total)


@cache
def say_once(line: str) -> None:
    """Print a line that stays, the same one only once in a process."""
    Progress().say(line)


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
