"""From what a user gives as data to an open source: the list of known formats, tried in order."""

import re
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from tinyseed.data.base import Concatenation, Source, SourceFormat
from tinyseed.data.folder import EXTENSIONS, FOLDER, LIST, notes_on
from tinyseed.data.named import TORCHVISION
from tinyseed.data.parquet import PARQUET
from tinyseed.errors import InputError

FORMATS: tuple[SourceFormat, ...] = (FOLDER, LIST, PARQUET, TORCHVISION)

_PLANNED = re.compile(r"^hf:|://|\.(tar|tgz|zip)(\.\w+)?$", re.IGNORECASE)


def open_source(specs: Sequence[str]) -> Source:
    """Open one data set from one or several specs.

    Args:
        specs: folders (searched recursively, the first sub-folder names the class), text files of paths (.txt
            or .list), Parquet files, patterns of them or folders of them, `torchvision:NAME[:SPLIT][@FOLDER]`.
            Several are joined in this order; classes of the same name are one class.

    Raises:
        InputError: a spec is missing, empty, unreadable or of a kind that is not supported.

    >>> open_source(["no-such-folder"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinyseed.errors.InputError: no-such-folder: does not exist: give a folder of images, ...
    """
    if not specs:
        raise InputError("(nothing)", _supported())
    sources = tuple(map(_open_one, specs))
    return sources[0] if len(sources) == 1 else Concatenation(sources)


def _open_one(spec: str) -> Source:
    if not spec.strip():
        raise InputError("(an empty text)", _supported())
    path = Path(spec).expanduser()
    for kind in FORMATS:
        source = kind.open(spec, path) if kind.matches(spec, path) else None
        if source is not None:
            return source
    raise InputError(spec, f"{_why_not(spec, path)}: {_supported()}")


def _why_not(spec: str, path: Path) -> str:
    if path.is_dir():
        found = "".join(f"; {note}" for note in notes_on(path))
        return f"holds no images ({', '.join(EXTENSIONS)}; no *.parquet either){found}"
    if _PLANNED.search(spec):
        return "is of a kind that is not supported yet"
    if path.exists():
        return "is a file of another kind"
    if not has_magic(spec):
        return "does not exist"
    return "matches no file" if path.suffix.lower() == ".parquet" else "patterns are for *.parquet only"


def _supported() -> str:
    *others, last = [kind.description for kind in FORMATS]
    return f"give {', '.join(others)} or {last}"
