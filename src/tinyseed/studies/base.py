"""What a study is: rows that differ in one thing, and what is published about them.

A study is a record in paper.py or plus.py, and one line in catalog.py. Running, tuning, measuring and reporting are the
same for all (run.py). No study asks which method runs: a row names its method and the settings that differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Values = Mapping[str, Any]
"""Settings of a run by their names."""


@dataclass(frozen=True)
class Expected:
    """A published figure.

    Attributes:
        top1: linear probe on ImageNet, top-1 in per cent.
        source: where it stands.
    """

    top1: float
    source: str


@dataclass(frozen=True)
class Pretraining:
    """A teacher that the study trains on the same images; rows that name the same one share it.

    Attributes:
        name: of its folder.
        method: as in `tinyseed pretrain METHOD`.
        backbone: its network.
        settings: in which it differs from the study's common ones.
        length: how many times the teachers' budget it takes.
    """

    name: str
    method: str
    backbone: str
    settings: Values = field(default_factory=dict)
    length: float = 1.0


@dataclass(frozen=True)
class Row:
    """A row of a study's table.

    Attributes:
        name: short, for `--rows` and folders.
        label: what the table calls it.
        method: name of the method; None: random init, which is not trained.
        settings: in which it differs from the study's common ones.
        teacher: trained by the study; None: the one that is given, where the method has one.
        length: how many times the budget it takes.
        own: the setting that is its own, with values to tune it among, the default first.
        x: where it stands on the study's axis.
        expected: what is published for it.
    """

    name: str
    label: str
    method: str | None
    settings: Values = field(default_factory=dict)
    teacher: Pretraining | None = None
    length: float = 1.0
    own: tuple[str, tuple[Any, ...]] | None = None
    x: float | None = None
    expected: Expected | None = None


@dataclass(frozen=True)
class Axis:
    """What the rows differ in, where that is a number.

    Attributes:
        label: what the plot writes below it.
        metric: the number of a row: "x" for its own `x`, or a metric of its runs.
        log: whether the axis is logarithmic.
    """

    label: str
    metric: str = "x"
    log: bool = False


@dataclass(frozen=True)
class Study:
    """A table that can be made again.

    Attributes:
        name: as in `tinyseed recipes run NAME`.
        about: what it compares, in a line.
        source: what it repeats, and what is known of the published figures.
        common: settings of all runs, as far as their methods have them.
        student: network of the rows, unless another is given.
        budget: of each cell, unless another is given.
        axis: where the rows stand on a line of numbers.
    """

    name: str
    about: str
    source: str
    rows: tuple[Row, ...]
    common: Values
    student: str
    budget: str
    axis: Axis | None = None

    def at_scale(self, suffix: str, budget: str, **changes: Any) -> "Study":  # noqa: ANN401
        """The same rows at another scale, under another name."""
        return replace(self, name=f"{self.name}-{suffix}", budget=budget, **changes)
