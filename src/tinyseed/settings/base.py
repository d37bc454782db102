"""What all settings have in common: ranges, a check, names for the command line, a JSON form."""

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from tinyseed.errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have.

    >>> str(Range(0, 1)), str(Range(0, above=True)), str(Range(0, 1, above=True))
    ('from 0 to 1', 'above 0', 'above 0 and up to 1')
    """

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = _in_digits(self.low), _in_digits(self.high)
        if math.isinf(self.high):
            return f"{'above' if self.above else 'of at least'} {low}"
        return f"above {low} and up to {high}" if self.above else f"from {low} to {high}"


def _in_digits(number: float) -> str:
    """Whole numbers with all their digits, not as 1e+06."""
    return f"{int(number)}" if number % 1 == 0 else f"{number:g}"


IMAGE_SIDES = Range(8, 4096)
"""Sides of images in pixels; a network's memory grows with their square."""
MOST_EPOCHS = Range(1, 1_000_000)
"""Passes over the data: a million of them take years even over a hundred images."""
BATCH_SIZES = Range(1, 2**20)
"""Images per step; the largest batches that were ever published are thirty times smaller."""
WIDTHS = Range(1, 2**18)
"""Widths of layers; a layer between two of the largest would not fit into any machine."""
QUEUE_SIZES = Range(0, 2**26)
"""Rows of a queue: a thousand times the papers', 32 GiB of 128 numbers each."""
SEEDS = Range(0, 2**63 - 1)
"""What a generator takes."""
WORKERS = Range(0, 1024)
"""Processes; a machine has no more cores."""
COUNTS = Range(1, 2**31 - 1)
"""Numbers of images, steps, neighbors: what an index of four bytes can count."""
LARGEST = 1e6
"""Of learning rates, weight decays, temperatures: whatever is larger is not finite after a few steps."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings. The text below a field is its help; `metadata["alias"]` is a former name of it."""

    RANGES: ClassVar[Mapping[str, Range]] = {}
    """The range of each numeric field of this class; None and "auto" pass."""

    def check(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            InputError: names the first setting that is out of its range, or does not go with another one.
        """
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise InputError(value, f"give one of {', '.join(map(str, get_args(hint)))}", argument=name)
        for kind in reversed(type(self).__mro__):
            for name, limits in vars(kind).get("RANGES", {}).items():
                for value in _numbers(name, getattr(self, name)):
                    if not math.isfinite(value) or value not in limits:
                        raise InputError(value, f"give a number {limits}", argument=name)

    def as_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}


def _numbers(name: str, value: object) -> Iterator[float]:
    for entry in value if isinstance(value, tuple) else (value,):
        if entry in (None, "auto"):
            continue
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            raise InputError(entry, "give a number", argument=name)
        yield entry


def holds(value: object, hint: Any) -> bool:  # noqa: ANN401  (types are values here)
    """Whether a JSON value can be that of a setting of this type, apart from its range.

    >>> holds([0.5, 1], tuple[float, ...]), holds("auto", int | Literal["auto"]), holds(True, int)
    (True, True, False)
    """
    options, origin = get_args(hint), get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(holds(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        return isinstance(value, list | tuple) and all(holds(entry, options[0]) for entry in value)
    if hint in (int, float):
        number = isinstance(value, int | float) if hint is float else isinstance(value, int)
        return number and not isinstance(value, bool)
    return isinstance(value, str if hint is Path else hint)


def aliases(settings: type) -> dict[str, str]:
    """Former names of renamed fields, and what they are called now."""
    return {
        field.metadata["alias"]: field.name
        for field in dataclasses.fields(settings)
        if "alias" in field.metadata
    }


def flag(name: str) -> str:
    """The command-line flag of a setting.

    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def words(values: tuple[float, ...]) -> str:
    """Numbers as they are typed on the command line."""
    return " ".join(f"{value:g}" for value in values)
