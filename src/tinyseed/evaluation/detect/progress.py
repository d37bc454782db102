"""A line on where a detector's training or test is. Imports nothing of tinyseed."""

import time

from rich.console import Console

_SECONDS = 30.0
_WIDTH = 79
"""A line covers the one before it."""


class Progress:
    """On a terminal one line that changes, elsewhere a line every half minute; both on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.title = ""
        self.began = self.told = time.monotonic()
        self.first: int | None = None

    def begin(self, title: str) -> None:
        """Name what follows."""
        self.title, self.first = title, None
        self.began = self.told = time.monotonic()
        self.say(title)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(line, markup=False, soft_wrap=True)

    def update(self, done: int, total: int, loss: float | None = None) -> None:
        """Tell how far it is, if it is time to."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.began = done, now
        live, last = self.console.is_terminal, done >= total
        if not (live or last or now - self.told >= _SECONDS):
            return
        self.told = now
        pace = (now - self.began) / max(1, done - self.first)
        left = (
            "" if done == self.first else f"  {pace:.2f} s each  {pace * (total - done) / 60:,.0f} min left"
        )
        shown = "" if loss is None else f"  loss {loss:.3f}"
        line = f"{self.title}: {done:,}/{total:,}{shown}{left}"
        end = "\r" if live and not last else "\n"
        self.console.print(line.ljust(_WIDTH), markup=False, soft_wrap=True, end=end)
