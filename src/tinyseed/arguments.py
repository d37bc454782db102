"""A settings dataclass becomes command-line flags, and errors are written with flags.

The standard library's argparse does the parsing; this file turns field types into converters, attribute docstrings
into help, and every mistake into one line (docs/architecture.md says why tyro is not used).
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from tinyseed.errors import MISSING, InputError, references_as
from tinyseed.settings.base import flag
from tinyseed.settings.several import (
    GRID_HELP,
    METHOD_HELP,
    given_for,
    grid_of,
    knows,
    require_own,
    several_methods,
)
from tinyseed.settings.train import TrainSettings
from tinyseed.text import one_line

Settings = TypeVar("Settings")

_KINDS: dict[type, str] = {int: "an integer", float: "a number", str: "a text", Path: "a path"}
_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class UsageError(InputError):
    """A mistake in the command line itself; its argument is written as it was typed."""


def with_flags(error: BaseException) -> str:
    """An error in one line, as the command line writes it: arguments as flags.

    >>> with_flags(InputError("a.pth", "give `weights` too", argument="teacher_arch"))
    '--teacher-arch: a.pth: give --weights too'
    """
    if not isinstance(error, InputError):
        return one_line(references_as(str(error), flag))
    parts = [str(error.value), references_as(error.remedy, flag)]
    if error.argument is not None:
        parts.insert(0, error.argument if isinstance(error, UsageError) else flag(error.argument))
    return one_line(": ".join(parts))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _ParseError(message.removeprefix("argument "))


class _ParseError(Exception):
    pass


def parse(
    settings: type[Settings],
    arguments: Sequence[str],
    *,
    command: str,
    example: str,
    about: str,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Fill a dataclass from command-line arguments. `--help` shows the example first and exits with 0.

    `defaults` take the place of the fields' own.

    Raises:
        UsageError: an unknown flag (the closest is offered), a missing one, or a value of the wrong kind.
    """
    parser = _parser(settings, command, example, about, defaults or {})
    return settings(**_values(parser, arguments, command, example))


def parse_several(
    methods: Mapping[str, type[TrainSettings]],
    arguments: Sequence[str],
    *,
    command: str,
    example: str,
    about: str,
    known: Mapping[str, str],
    others: Mapping[str, type[TrainSettings]],
    defaults: Mapping[str, Any] | None = None,
) -> TrainSettings | dict[str, TrainSettings]:
    """The same for a command that can train several networks, a grid of settings, or several methods.

    Args:
        methods: the settings of each method that is to run, by its name.
        arguments: as typed.
        command: as for `parse`, as are `example`, `about` and `defaults`.
        example: begins the help.
        about: what the first method does.
        known: every method that there is and what it does, for the help.
        others: the settings of every method, to say whose a flag is that these methods lack.
        defaults: take the place of the fields' own.

    Returns:
        The settings of the only run, or of each by its name: `settings.several`.

    Raises:
        UsageError: as `parse`.
        InputError: the grid is wrong.
    """
    _refuse_flags_of_others(arguments, methods.values(), others)
    parsers = {
        name: _with_methods(
            _parser(kind, command, example, about, defaults or {}, several=kind.NETWORK), known
        )
        for name, kind in methods.items()
    }
    every = list(parsers.values())
    values = {name: _values(parser, arguments, command, example, every) for name, parser in parsers.items()}
    first = next(iter(methods))
    kind = methods[first]
    students: tuple[str, ...] = values[first][kind.NETWORK]
    typed = grid_of(values[first]["grid"])
    for given in values.values():
        del given["grid"], given["method"], given[kind.NETWORK]
    if len(methods) == len(students) == 1 and not typed:
        return kind(**{**values[first], kind.NETWORK: students[0]})
    grids = {
        name: _converted(each, given_for(typed, each, methods.values())) for name, each in methods.items()
    }
    return several_methods(methods, values, students, grids)


def _refuse_flags_of_others(
    arguments: Sequence[str],
    kinds: Collection[type[TrainSettings]],
    methods: Mapping[str, type[TrainSettings]],
) -> None:
    for word, following in pairwise([*arguments, ""]):
        typed, equals, value = word.partition("=")
        name = typed.removeprefix("--").removeprefix("no-").replace("-", "_")
        if not typed.startswith("--") or any(knows(kind, name) for kind in kinds):
            continue
        owners = [method for method, kind in methods.items() if knows(kind, name)]
        if owners:
            shown = value if equals or following.startswith("-") else following
            raise UsageError(shown or "given", f"is a flag of --method {' or '.join(owners)}", argument=typed)


def _with_methods(parser: "_Parser", known: Mapping[str, str]) -> "_Parser":
    """Add the flags that make several runs of one command."""
    grid, method = (" ".join(references_as(text, flag).split()) for text in (GRID_HELP, METHOD_HELP))
    parser.add_argument("--grid", nargs="+", default=[], metavar="NAME=VALUE,VALUE", help=grid)
    default = next(iter(known))
    parser.add_argument(
        "--method", nargs="+", default=[], metavar="NAME", help=f"{method} (default {default})"
    )
    width = max(map(len, known)) + 2
    listed = "\n".join(f"  {name:<{width}}{about}" for name, about in known.items())
    parser.epilog = f"methods (tinyseed distill --method NAME --help shows the flags of one):\n{listed}"
    return parser


def _converted(settings: type[TrainSettings], typed: Mapping[str, Sequence[str]]) -> dict[str, list[Any]]:
    """The values of a grid, as their flags would take them."""
    hints = typing.get_type_hints(settings)
    grid: dict[str, list[Any]] = {}
    for given, texts in typed.items():
        name = require_own(given, settings)
        convert = _switch if hints[name] is bool else converter(hints[name])
        try:
            grid[name] = [convert(text) for text in texts]
        except argparse.ArgumentTypeError as error:
            raise InputError(f"{name}={','.join(texts)}", str(error), argument="grid") from None
    return grid


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text or repr(text)}: give true or false")
    return text == "true"


def _values(
    parser: _Parser, arguments: Sequence[str], command: str, example: str, others: Sequence[_Parser] = ()
) -> dict[str, Any]:
    """The values of the flags; several are a tuple. Flags that others know are left to those."""
    try:
        filled, unknown = parser.parse_known_args(list(arguments))
    except _ParseError as error:
        typed, _, rest = str(error).partition(": ")
        value, _, remedy = rest.partition(": ")
        typed = typed.partition("/")[0]
        raise UsageError(value, remedy or f"see {command} --help", argument=typed) from None
    unknown = _without_flags_of(others, unknown)
    if unknown:
        remedy = _closest(unknown[0], parser, command)
        raise UsageError(" ".join(unknown[1:2]) or "given", remedy, argument=unknown[0])
    values = vars(filled)
    missing = [name for name, value in values.items() if value is dataclasses.MISSING]
    if missing:
        raise UsageError(MISSING, f"give it, as in: {example}", argument=flag(missing[0]))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _without_flags_of(parsers: Sequence[_Parser], unknown: Sequence[str]) -> list[str]:
    """Words that none of these parsers knows, as flags or as a flag's values."""
    flags = {typed for parser in parsers for action in parser._actions for typed in action.option_strings}
    left, skipped = list[str](), False
    for word in unknown:
        if word.startswith("--"):
            skipped = word.partition("=")[0] in flags
        left += [] if skipped else [word]
    return left


def values_of(typed: str, arguments: Sequence[str]) -> list[str]:
    """The values of a flag that takes several, before anything else is parsed.

    >>> values_of("--method", ["--method", "seed", "regress", "--lr", "1"]), values_of("--method", ["--method=seed"])
    (['seed', 'regress'], ['seed'])
    """
    found: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == typed:
            found = list(takewhile(lambda word: not word.startswith("-"), arguments[position + 1 :]))
        elif argument.startswith(f"{typed}="):
            found = [argument.removeprefix(f"{typed}=")]
    return found


def value_of(typed: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag, before anything else is parsed; None where it is not given, or without a value.

    >>> value_of("--recipe", ["--lr", "1", "--recipe", "a"]), value_of("--recipe", ["--recipe=b"])
    ('a', 'b')
    """
    found = None
    for position, argument in enumerate(arguments):
        if argument == typed and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{typed}="):
            found = argument.removeprefix(f"{typed}=")
    return found


def _parser(
    settings: type, command: str, example: str, about: str, defaults: Mapping[str, Any], *, several: str = ""
) -> _Parser:
    # argparse prints its usage line first; the example matters more, so it takes that place.
    parser = _Parser(
        prog=command,
        usage=f"{example}\n\n{textwrap.fill(about, 110)}".replace("%", "%%"),
        allow_abbrev=False,
        add_help=True,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=34, width=110
        ),
    )
    parser._optionals.title = "flags"
    hints = typing.get_type_hints(settings)
    helps = attribute_docstrings(settings)
    fields = dataclasses.fields(_dataclass(settings))
    for field in sorted(fields, key=lambda field: not _required(field)):
        default = dataclasses.MISSING if _required(field) else field.default
        hint = tuple[hints[field.name], ...] if field.name == several else hints[field.name]
        _add(parser, field, hint, helps.get(field.name, ""), defaults.get(field.name, default))
    return parser


def _add(
    parser: _Parser,
    field: "dataclasses.Field[Any]",
    hint: Any,  # noqa: ANN401
    text: str,
    default: Any,  # noqa: ANN401
) -> None:
    text = references_as(text, flag).replace("%", "%%")
    if "alias" in field.metadata:  # a former name works, and is not advertised
        parser.add_argument(
            flag(field.metadata["alias"]),
            dest=field.name,
            type=converter(hint),
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
    if hint is bool:
        action = argparse.BooleanOptionalAction if default else "store_true"
        parser.add_argument(flag(field.name), action=action, default=default, help=text)
        return
    items = get_args(hint) if get_origin(hint) is tuple else ()
    item = items[0] if items else hint
    shown = "required" if default is dataclasses.MISSING else _shown_default(default)
    parser.add_argument(
        flag(field.name),
        type=converter(item),
        nargs=None if not items else "+" if Ellipsis in items else len(items),
        default=default,
        metavar=_metavar(item),
        help=f"{text} ({shown})" if shown else text,
    )


def converter(hint: Any) -> Callable[[str], Any]:  # noqa: ANN401  (types are values here)
    """A function from text to a value of this type; its error says what to give."""
    options = [option for option in _options(hint) if option is not type(None)]

    def convert(text: str) -> Any:  # noqa: ANN401
        for option in options:
            if get_origin(option) is Literal:
                if text in get_args(option):
                    return text
                continue
            try:
                return option(text)
            except ValueError:
                continue
        raise argparse.ArgumentTypeError(f"{text or repr(text)}: give {_wanted(options)}")

    return convert


def attribute_docstrings(settings: type) -> dict[str, str]:
    """The string below each field of a dataclass and of the ones it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(settings.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = " ".join(str(below.value.value).split())  # pyright: ignore
    return found


def _options(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _wanted(options: Sequence[Any]) -> str:
    words = []
    for option in options:
        words += list(get_args(option)) if get_origin(option) is Literal else [_KINDS.get(option, "a value")]
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _metavar(hint: Any) -> str:  # noqa: ANN401
    words = []
    for option in _options(hint):
        if option is not type(None):
            words += list(get_args(option)) if get_origin(option) is Literal else [_METAVARS[option]]
    return "|".join(words)


def _shown_default(default: Any) -> str:  # noqa: ANN401
    if default in (None, ()):
        return ""
    return f"default {' '.join(map(str, default)) if isinstance(default, tuple) else default}"


def _required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _dataclass(settings: type) -> Any:  # noqa: ANN401
    assert dataclasses.is_dataclass(settings)
    return settings


def _closest(unknown: str, parser: _Parser, command: str) -> str:
    flags = [typed for action in parser._actions for typed in action.option_strings if len(typed) > 2]
    close = difflib.get_close_matches(unknown, flags, n=1)
    return f"unknown flag; did you mean {close[0]}?" if close else f"unknown flag; see {command} --help"
