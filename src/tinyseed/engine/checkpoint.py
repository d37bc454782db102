"""A checkpoint is whole or it is the one before. Imports errors only."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tinyseed.errors import InputError, RunError

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
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save({"format": FORMAT} | {name: getattr(checkpoint, name) for name in _FIELDS}, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer tells a full disk as a RuntimeError
        unfinished.unlink(missing_ok=True)
        kept = "the last checkpoint is intact" if path.exists() else "there is no earlier checkpoint"
        raise RunError(f"could not save {path}: {_first_line(error)}; {kept}") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        InputError: it cannot be read, or was written by another version of the format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError("--resume", path, f"is no readable checkpoint ({_first_line(error)})") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(
            "--resume",
            path,
            f"is not of checkpoint format {FORMAT}; resume it with the version that wrote it",
        )
    return Checkpoint(**content)


_FIELDS = tuple(Checkpoint.__dataclass_fields__)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    return (str(cause).strip().splitlines() or [type(error).__name__])[0]
