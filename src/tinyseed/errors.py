"""The two ways in which tinyseed fails on purpose, and how an error gets the name of the argument that it is about.

Library functions say which value is wrong and what to do about it. A caller that passes its own argument on says so
with `argument(...)`; the command line then writes `--teacher`, Python writes `teacher=`. A remedy names other arguments
in backticks (`` `teacher_weights` ``), which the command line turns into flags.
"""

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tinyseed.text import one_line, public

MISSING = "missing"
"""The value of an argument that was not given."""

_REFERENCE = re.compile(r"`([a-z][a-z0-9_]*)`")


class InputError(ValueError):
    """A user's mistake: a wrong argument or input. The command line ends with exit code 2.

    Attributes:
        value: what was given, or `MISSING`.
        remedy: what is wrong with it and what to do.
        argument: the name of the argument, as far as the functions that the error has passed know it.

    >>> print(InputError(-1, "give a number of at least 1", argument="epochs"))
    epochs=-1: give a number of at least 1
    >>> print(InputError("runs/x", "no such file or folder"))
    runs/x: no such file or folder
    """

    def __init__(self, value: object, remedy: str, *, argument: str | None = None) -> None:
        value = public(value) if isinstance(value, str) else value
        super().__init__(value, remedy)
        self.value = value
        self.remedy = remedy
        self.argument = argument

    def __str__(self) -> str:
        if self.argument is None:
            return one_line(f"{self.value}: {self.remedy}")
        between = ": " if self.value is MISSING else "="  # a folder may be called "missing"
        return one_line(f"{self.argument}{between}{self.value}: {self.remedy}")

    def rename(self, name: str | None, renamed: Mapping[str, str]) -> None:
        """Name the argument as a caller calls it; see `argument`."""
        self.argument = name if self.argument is None else renamed.get(self.argument, self.argument)
        self.remedy = references_as(self.remedy, lambda known: f"`{renamed.get(known, known)}`")


class RunError(RuntimeError):
    """The run failed for a reason other than its arguments (NaN loss, full disk). Exit code 1."""

    def __str__(self) -> str:
        return one_line(super().__str__())


@contextmanager
def argument(name: str | None = None, /, **renamed: str) -> Iterator[None]:
    """Tell errors from inside which argument of the caller they are about.

    Args:
        name: for errors that name no argument yet.
        renamed: what the caller calls a parameter of the function that it calls.

    >>> with argument("teacher", weights="teacher_weights"):
    ...     raise InputError("a.pth", "no such file", argument="weights")
    Traceback (most recent call last):
    tinyseed.errors.InputError: teacher_weights=a.pth: no such file
    """
    try:
        yield
    except InputError as error:
        error.rename(name, renamed)
        raise


def references_as(text: str, write: Callable[[str], str]) -> str:
    """A message with the arguments that it names in backticks written in another way.

    >>> references_as("try a lower `lr`", lambda name: f"--{name}")
    'try a lower --lr'
    """
    return _REFERENCE.sub(lambda found: write(found[1]), text)


_REMEDIES = {
    errno.EMFILE: "raise the number of files that a process may open with ulimit -n",
    errno.ENFILE: "raise the number of files that the machine may open (fs.file-max)",
    errno.ENOMEM: "there is not enough memory; give fewer `workers`, or a smaller `batch_size`",
    **dict.fromkeys(
        (
            errno.ENOTCONN,
            errno.ETIMEDOUT,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENETDOWN,
            errno.ENETUNREACH,
        ),
        "the file system does not answer; look at its mount",
    ),
}
"""What to do about errors of the operating system that say nothing about the file at hand."""

_OUT_OF_MEMORY = re.compile(
    "out of memory|allocate memory|not enough memory|bad_alloc|Storage size calculation overflowed"
)
"""How torch says it, for a GPU and for the CPU."""


def remedy_of(error: BaseException) -> str | None:
    """What to do where a process or the machine lacks memory, open files or a file system; None for other errors.

    Such an error is not a property of the file that was read when it occurred.
    """
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    ):
        return _REMEDIES[errno.ENOMEM]
    return _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None


def first_line(error: BaseException) -> str:
    """The message of an error in one line; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
