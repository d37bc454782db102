"""The state of a run on disk, from which it resumes bit-exactly. Checkpoints are written atomically."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """

    step: int
    elapsed: float
    images: int
    module: dict[str, Any]
    method: dict[str, Any]
    optimizer: dict[str, Any]
    precision: dict[str, Any]


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
    return Checkpoint(**content)
