"""A checkpoint is whole or it is the one before. Imports errors and models/weights.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyseed.errors import InputError, RunError, first_line
from tinyseed.files import write_checkpoint

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    The loader's position, the views and every other random choice follow from (seed, step), so they are not here.

    Attributes:
        step: optimizer steps done.
        elapsed: seconds of training done.
        images: images in the training part when the run began.
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
    """Write beside the old file, flush to the disk, then take its place.

    Raises:
        RunError: nothing could be written (full disk, no rights); the old file is intact.
    """
    content = {"format": FORMAT} | {name: getattr(checkpoint, name) for name in _FIELDS}
    try:
        write_checkpoint(path, content)
    except RunError as error:
        kept = "the last checkpoint is intact" if path.exists() else "there is no earlier checkpoint"
        raise RunError(f"{error}; {kept}") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: it cannot be read, or was written by another version of the format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError("--resume", path, f"is no readable checkpoint ({first_line(error)})") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(
            "--resume",
            path,
            f"is not of checkpoint format {FORMAT}; resume it with the version that wrote it",
        )
    return Checkpoint(**content)


_FIELDS = tuple(Checkpoint.__dataclass_fields__)
