"""The state of a run on disk, from which it resumes bit-exactly. Checkpoints are written atomically."""

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

from tinyseed.checkpoints.contents import refuse_false_sizes
from tinyseed.errors import InputError, RunError
from tinyseed.files import read_checkpoint, write_checkpoint

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume.

    The loader's position, the views and every other random choice follow from (seed, step), so they are not here.

    Attributes:
        step: optimizer steps done.
        elapsed: seconds of training done.
        images: number of training images when the run began.
        module, method, optimizer, precision: state dicts.
        evaluations: what was measured on held-out images so far, the line of the untrained network first.
        average: the moving average's state dict; empty without one.
        made_from: images and teacher, see `made_from.MadeFrom`; empty in checkpoints of earlier versions.
    """

    step: int
    elapsed: float
    images: int
    module: dict[str, Any]
    method: dict[str, Any]
    optimizer: dict[str, Any]
    precision: dict[str, Any]
    average: dict[str, Any] = field(default_factory=dict)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    made_from: dict[str, Any] = field(default_factory=dict)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint.

    Raises:
        RunError: it could not be written (full disk, no permission); the old file is intact.
    """
    try:
        write_checkpoint(path, {"format": FORMAT} | vars(checkpoint))
    except RunError as error:
        kept = "the last checkpoint is intact" if path.exists() else "there is no earlier checkpoint"
        raise RunError(f"{error}; {kept}") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: it cannot be read, or was written in another version of the format.
    """
    content = read_checkpoint(path)
    if content.pop("format", None) != FORMAT:
        remedy = f"it is not in checkpoint format {FORMAT}; resume the run with the version that wrote it"
        raise InputError(path, remedy)
    wrong = _wrong_entry(content)
    if wrong is not None:
        raise InputError(
            path, f"is not a checkpoint of a run: its entry {wrong!r} is missing, unknown or damaged"
        )
    refuse_false_sizes(content, path)
    return Checkpoint(**content)


def _wrong_entry(content: dict[str, Any]) -> str | None:
    """An entry that a checkpoint cannot have or has to have."""
    known: dict[str, Any] = {entry.name: entry for entry in fields(Checkpoint)}
    for name, entry in known.items():
        if name not in content and entry.default_factory is MISSING:
            return name
        kind = get_origin(entry.type) or entry.type
        value = content.get(name)
        if name in content and (
            isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind)
        ):
            return name
    for name in ("step", "elapsed", "images"):
        if not 0 <= content[name] < 2**63:  # false for NaN too
            return name
    if not all(isinstance(line, dict) for line in content.get("evaluations", ())):
        return "evaluations"
    return next((str(name) for name in content if name not in known), None)
