from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tinyseed.arguments import parse, with_flags
from tinyseed.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Base:
    rounds: int = 3
    """How many rounds, 100 % of them."""
    size: int | Literal["auto"] = "auto"
    """Size of a thing."""


@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    data: tuple[str, ...]
    """Where the things are."""
    out: Path
    """Where to."""
    minutes: float | None = None
    """For how long."""
    mode: Literal["fast", "slow"] = "fast"
    """Which way."""
    resume: bool = False
    """Go on."""


def parsed(*arguments: str) -> Settings:
    return parse(Settings, arguments, command="tool run", example="tool run --data a --out b", about="Runs.")


def test_every_kind_of_field_is_filled():
    settings = parsed(
        "--data",
        "a",
        "b",
        "--out",
        "o",
        "--rounds",
        "5",
        "--size",
        "7",
        "--minutes",
        "0.5",
        "--mode",
        "slow",
        "--resume",
    )
    assert settings == Settings(
        data=("a", "b"), out=Path("o"), rounds=5, size=7, minutes=0.5, mode="slow", resume=True
    )
    assert parsed("--data", "a", "--out", "o") == Settings(data=("a",), out=Path("o"))
    assert parsed("--data", "a", "--out", "o", "--size", "auto").size == "auto"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "a", "--out", "o", "--rounds", "x"), "--rounds: x: give an integer"),
        (("--data", "a", "--out", "o", "--size", "big"), "--size: big: give an integer or auto"),
        (("--data", "a", "--out", "o", "--mode", "odd"), "--mode: odd: give fast or slow"),
        (
            ("--data", "a", "--out", "o", "--minute", "3"),
            "--minute: 3: unknown flag; did you mean --minutes?",
        ),
        (("--data", "a"), "--out: missing: give it, as in: tool run --data a --out b"),
        (("--data", "--out", "o"), "--data: expected at least one argument: see tool run --help"),
        (("stray", "--data", "a", "--out", "o"), "stray: given: unknown flag; see tool run --help"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, told):
    with pytest.raises(InputError) as caught:
        parsed(*arguments)
    assert with_flags(caught.value) == told


def test_help_begins_with_the_example_and_names_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith("usage: tool run --data a --out b")
    for expected in (
        "--rounds N",
        "100 % of them. (default 3)",
        "--size N|auto",
        "--mode fast|slow",
        "(required)",
    ):
        assert expected in page
