"""`tinyseed teachers`: what a checkpoint is, for a terminal. Imports models."""

from collections.abc import Mapping
from dataclasses import dataclass

from tinyseed.checkpoints.formats import ModelDescription
from tinyseed.checkpoints.load import describe_model

__all__ = ["TeachersConfig", "describe_model", "table"]


@dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """Flags of `tinyseed teachers FILE`."""

    json: bool = False
    """Print JSON."""
    teacher_arch: str | None = None
    """Network of a file that does not say what it is: a model's name."""


def table(teacher: ModelDescription) -> str:
    """What a teacher is, a line each."""
    contract = teacher.input
    head = f"{teacher.head}, to {teacher.dim}" if teacher.head != "none" else "none"
    rows = {
        "method": teacher.method,
        "architecture": teacher.architecture,
        "trunk": f"{teacher.width} features",
        "head": head,
        "rows": f"unit vectors of {teacher.dim} numbers",
        "epochs": "not told" if teacher.epochs is None else str(teacher.epochs),
        "images": f"{contract.size} px, {contract.interpolation}",
        "mean": ", ".join(f"{value:g}" for value in contract.mean),
        "std": ", ".join(f"{value:g}" for value in contract.std),
        "used": _counts(teacher.used),
        "unused": _counts(teacher.unused),
        "size": "" if teacher.size is None else f"{teacher.size / 1e6:,.1f} MB",
    }
    lines = [f"  {label:13}{text}" for label, text in rows.items() if text]
    return "\n".join([teacher.spec, *lines])


def _counts(counts: Mapping[str, int]) -> str:
    told = ", ".join(f"{group} {count}" for group, count in counts.items() if count)
    return f"{told} (tensors)" if told else "nothing"
