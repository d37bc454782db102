"""Several runs from one command: several students of one teacher, several settings of a student, or methods."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from tinyseed.errors import InputError
from tinyseed.settings.base import aliases, flag
from tinyseed.settings.train import TrainSettings

Kind = TypeVar("Kind", bound=TrainSettings)
Kept = TypeVar("Kept")

METHOD_HELP = """How the student learns. Several train a run for each, as several values of `grid` do; a flag that only
some of them have is for those"""

GRID_HELP = """Train a run for each of these values of a student's own settings, as in teacher_temperature=0.01,0.1; for
several settings, one for each combination. All see the same views, and each has its own folder in the output folder."""

_SEED = "decides the views and their order, which all runs have in common; train runs with other seeds by themselves"
_TEACHER = "decides the teacher's random weights too, and there is one teacher for all; train each by itself"


def own_settings(kind: type[TrainSettings]) -> frozenset[str]:
    """The settings that a student has for itself; all others are the same for students that train together."""
    return frozenset(name for each in kind.__mro__ for name in vars(each).get("OWN", ()))


def require_own(name: str, kind: type[TrainSettings]) -> str:
    """The name of a setting that the runs of a grid may differ in.

    Raises:
        InputError: there is no such setting, or it is the same for all of them.
    """
    name = aliases(kind).get(name, name)
    known = [field.name for field in dataclasses.fields(kind)]
    own = own_settings(kind)
    if name not in known:
        close = difflib.get_close_matches(name, sorted(own), n=1)
        remedy = (
            f"there is no such setting; did you mean {close[0]}?" if close else "there is no such setting"
        )
        raise InputError(name, remedy, argument="grid")
    if name not in own:
        shared = f"is the same for all runs of a grid, give `{name}` once; they may differ in {', '.join(sorted(own))}"
        raise InputError(name, _SEED if name == "seed" else shared, argument="grid")
    return name


def several(
    kind: type[Kind], values: Mapping[str, Any], students: Sequence[str], grid: Mapping[str, Sequence[Any]]
) -> dict[str, Kind]:
    """The settings of each run by its name, which is also that of its folder in `out`.

    Args:
        kind: the settings of a method.
        values: settings that all runs have, without the network's name.
        students: networks to train.
        grid: values of settings that the runs differ in; there is a run for each combination.

    Raises:
        InputError: a setting cannot be varied, a value is there twice, or two runs would have the same folder.
    """
    axes = {require_own(name, kind): list(several_values) for name, several_values in grid.items()}
    network = kind.NETWORK
    if network in axes and len(students) > 1:
        raise InputError(" ".join(students), "is in `grid` too; give it in one place", argument=network)
    if "small_stem" in axes and values.get("teacher_weights") == "random":
        raise InputError("small_stem", _TEACHER, argument="grid")
    axes = {network: axes.pop(network, list(students)), **axes}
    _refuse_weights_of_one(network, axes, values)
    for name, given in axes.items():
        _require_distinct(name, given, network)
    runs: dict[str, Kind] = {}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        name = ",".join(_parts(chosen, network, one_network=len(axes[network]) == 1))
        if name in runs:
            remedy = "two runs would have the same folder; train one of them by itself"
            raise InputError(name, remedy, argument=network)
        runs[name] = kind(**{**values, **chosen, "out": values["out"] / name})
    return runs


def several_methods(
    kinds: Mapping[str, type[TrainSettings]],
    values: Mapping[str, Mapping[str, Any]],
    students: Sequence[str],
    grids: Mapping[str, Mapping[str, Sequence[Any]]],
) -> dict[str, TrainSettings]:
    """The settings of each run of one or several methods; of several, a run's name begins with that of its method.

    Args:
        kinds: the settings of each method by its name.
        values: for each method the settings that all its runs have, without the network's name.
        students: networks to train with each.
        grids: for each method the values of settings that its runs differ in.

    Raises:
        InputError: as `several`.
    """
    runs: dict[str, TrainSettings] = {}
    if len(kinds) == 1:
        ((method, kind),) = kinds.items()
        return dict(several(kind, values[method], students, grids[method]))
    for method, kind in kinds.items():
        single = len(students) == 1 and not grids[method]
        for name, of_run in several(kind, values[method], students, grids[method]).items():
            joined = method if single else f"{method},{name}"
            runs[joined] = of_run.replaced(out=values[method]["out"] / joined)
    return runs


def given_for(
    given: Mapping[str, Kept], kind: type[TrainSettings], others: Iterable[type[TrainSettings]]
) -> dict[str, Kept]:
    """What is given for a method: without settings that only other methods have.

    Args:
        given: values by the names of settings.
        kind: the settings of the method.
        others: those of all methods that the values are given to.
    """
    return {
        name: value
        for name, value in given.items()
        if knows(kind, name) or not any(knows(other, name) for other in others)
    }


def knows(kind: type[TrainSettings], name: str) -> bool:
    """Whether a method has a setting, by its name or a former one."""
    return any(aliases(kind).get(name, name) == field.name for field in dataclasses.fields(kind))


def _refuse_weights_of_one(
    network: str, axes: Mapping[str, Sequence[Any]], values: Mapping[str, Any]
) -> None:
    """Initial weights fit one architecture."""
    name = f"{network}_weights"
    given = [weights for weights in (*axes.get(name, ()), values.get(name)) if weights is not None]
    if given and len(axes[network]) > 1:
        remedy = f"fits one architecture; give one `{network}`, and others in runs of their own"
        raise InputError(given[0], remedy, argument=name)


def _require_distinct(name: str, given: Sequence[Any], network: str) -> None:
    shown = " ".join(map(str, given)) if name == network else f"{name}={','.join(map(str, given))}"
    argument = network if name == network else "grid"
    if not given or "" in given:
        raise InputError(shown or name, "give at least one value", argument=argument)
    if any(value in given[:place] for place, value in enumerate(given)):
        raise InputError(shown, "give each value once", argument=argument)


def _parts(chosen: Mapping[str, Any], network: str, *, one_network: bool) -> Iterator[str]:
    """The parts of a run's name: its network where there are several, and its values of the grid."""
    if not one_network or len(chosen) == 1:
        yield _safe(str(chosen[network]))
    for name, value in chosen.items():
        if name != network:
            yield f"{name}={_safe(str(value))}"


def _safe(text: str) -> str:
    """A part of a file name: what other systems or shells take for something else becomes a hyphen.

    >>> _safe("torchvision/resnet18"), _safe("../x"), _safe("1e-05")
    ('torchvision-resnet18', '-x', '1e-05')
    """
    return re.sub(r"[^\w.+-]", "-", text).lstrip(".") or "-"


def grid_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """The words of `--grid` as names and texts of values; hyphens in names are as good as underscores.

    Raises:
        InputError: a word is not NAME=VALUE,VALUE, or a name comes twice.

    >>> grid_of(["lr=0.1,1", "queue-size=64"])
    {'lr': ['0.1', '1'], 'queue_size': ['64']}
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not name:
            raise InputError(text, "give NAME=VALUE,VALUE, as in lr=0.03,0.1", argument="grid")
        if name in grid:
            raise InputError(
                text, f"give all values of {flag(name)} at once, as in {name}=A,B", argument="grid"
            )
        grid[name] = values.split(",")
    return grid
