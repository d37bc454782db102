"""How far an evaluation is: a live bar on a terminal, plain lines elsewhere. Imports nothing of tinyseed."""

import time
from collections.abc import Generator, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

PLAIN_LINE_SECONDS = 30.0


def track(items: Iterable[Item], title: str, total: int, done: int = 0) -> Generator[Item, None, None]:
    """The items, while the screen tells how many are done (on the error stream).

    Elsewhere than on a terminal a line each half minute; short work says nothing there.

    Args:
        items: what is worked through.
        title: what is being done, in a few words.
        total: how many there are in all.
        done: how many were done before.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield from _plainly(items, title, total, done, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)


def _plainly(
    items: Iterable[Item], title: str, total: int, done: int, console: Console
) -> Generator[Item, None, None]:
    last = time.monotonic()
    for count, item in enumerate(items, done + 1):
        yield item
        if time.monotonic() - last >= PLAIN_LINE_SECONDS:
            last = time.monotonic()
            console.print(f"{title}  {count}/{total}", markup=False, soft_wrap=True)
