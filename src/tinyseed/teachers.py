"""`tinyseed teachers`: describe a checkpoint on the terminal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tinyseed.errors import argument
from tinyseed.lazy import lazy

if TYPE_CHECKING:
    from tinyseed.checkpoints import load, public
else:
    load, public = lazy("tinyseed.checkpoints.load", "tinyseed.checkpoints.public")


@dataclass(frozen=True, kw_only=True)
class TeachersSettings:
    """Flags of `tinyseed teachers FILE`."""

    json: bool = False
    """Print JSON."""
    teacher_arch: str | None = None
    """Architecture (a model name) of a file that does not state it."""
    teacher_prefix: str | None = None
    """Part of a file, by what its tensors' names begin with: one of several networks or a module."""
    teacher_output: Literal["auto", "head", "backbone", "trunk"] = "auto"
    """What is used; auto: the head, where there is one."""


def describe(spec: str, settings: TeachersSettings) -> "public.ModelDescription":
    """Describe a checkpoint file, folder, URL or model name.

    Raises:
        InputError: there is no such model, or it cannot be loaded.
    """
    with argument(arch="teacher_arch", prefix="teacher_prefix", output="teacher_output"):
        return load.describe_model(
            spec, arch=settings.teacher_arch, prefix=settings.teacher_prefix, output=settings.teacher_output
        )


def table(teacher: "public.ModelDescription") -> str:
    """The description of a teacher, one property per line."""
    expected = teacher.input
    head = f"{teacher.head}, to {teacher.dim}" if teacher.head != "none" else "none"
    rows = {
        "method": teacher.method,
        "architecture": teacher.architecture,
        "backbone": f"{teacher.width} features",
        "head": head,
        "embedding": f"unit vectors of dimension {teacher.dim}",
        "epochs": "not stated" if teacher.epochs is None else str(teacher.epochs),
        "images": f"{expected.size} px, {expected.interpolation}",
        "mean": ", ".join(f"{value:g}" for value in expected.mean),
        "std": ", ".join(f"{value:g}" for value in expected.std),
        "used": _counts(teacher.used),
        "unused": _counts(teacher.unused),
        "source": teacher.source,
        "note": teacher.note,
        "size": "" if teacher.size is None else f"{teacher.size / 1e6:,.1f} MB",
    }
    lines = [f"  {label:13}{text}" for label, text in rows.items() if text]
    return "\n".join([teacher.spec, *lines])


def _counts(counts: Mapping[str, int]) -> str:
    listed = ", ".join(
        f"{group.replace('trunk', 'backbone')} {count}" for group, count in counts.items() if count
    )
    return f"{listed} (tensors)" if listed else "nothing"
