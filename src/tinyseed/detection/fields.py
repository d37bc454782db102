"""Typed access to what an annotation file says, whatever it holds: each field has the right type, or it is bad."""

import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from reprlib import repr as shortened

_YES_OR_NO = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_UNSTATED = ("", "unspecified")
"""Texts that stand for a field without a value, the second in VOC."""


class BadField(ValueError):  # noqa: N818  (the name says what it is)
    """A field that cannot be used.

    Attributes:
        name: of the field.
        why: what is wrong with it.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name
        self.why = why


class Fields:
    """One entry of an annotation file: an object in JSON, an element with its children in XML.

    >>> entry = Fields({"id": 7, "bbox": [1, "2", 3.5, 4], "iscrowd": None})
    >>> entry.key("id"), entry.numbers("bbox", 4), entry.flag("iscrowd")
    ('7', (1.0, 2.0, 3.5, 4.0), False)
    >>> entry.number("area")
    Traceback (most recent call last):
    tinyseed.detection.fields.BadField: area is missing
    """

    def __init__(self, content: object) -> None:
        if not isinstance(content, Mapping):
            raise BadField("entry", f"is {_shown(content)}, which has no fields")
        self._content: Mapping[str, object] = content

    def get(self, name: str) -> object:
        """The value as it is; None where there is none."""
        return self._content.get(name)

    def inner(self, name: str) -> "Fields":
        """An entry within this one.

        Raises:
            BadField: it is missing or anything else.
        """
        given = self.get(name)
        if not isinstance(given, Mapping):
            raise self._bad(name, "which has no fields")
        return Fields(given)

    def number(self, name: str) -> float:
        """A finite number, also one written as text.

        Raises:
            BadField: it is missing or anything else.
        """
        number = _number(self.get(name))
        if number is None:
            raise self._bad(name, "not a finite number")
        return number

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of exactly so many finite numbers.

        Raises:
            BadField: it is missing or anything else.
        """
        given = self.get(name)
        numbers = tuple(map(_number, given)) if isinstance(given, list) else ()
        known = tuple(number for number in numbers if number is not None)
        if len(known) != count or len(numbers) != count:
            raise self._bad(name, f"not {count} finite numbers")
        return known

    def text(self, name: str) -> str:
        """A text that is not empty, with single spaces; a whole number counts as text.

        Raises:
            BadField: it is missing or anything else.
        """
        given = self.get(name)
        text = " ".join(str(given).split()) if isinstance(given, str | int) else ""
        if not text or isinstance(given, bool) or not _encodable(text):
            raise self._bad(name, "not a name")
        return text

    def key(self, name: str) -> str:
        """An identifier: the number 7, the float 7.0 and the text "7" are the same.

        Raises:
            BadField: it is missing or anything else.
        """
        given = self.get(name)
        if isinstance(given, float) and given.is_integer():
            return str(int(given))
        if isinstance(given, bool) or not isinstance(given, int | str) or not str(given).strip():
            raise self._bad(name, "neither a whole number nor a text")
        return str(given).strip()

    def flag(self, name: str) -> bool:
        """Yes or no: 1 or 0, true or false, also as text; no where there is no value.

        Raises:
            BadField: it is anything else.
        """
        given = self.get(name)
        if given is None or (isinstance(given, str) and given.strip().lower() in _UNSTATED):
            return False
        if isinstance(given, float) and given.is_integer():
            given = int(given)
        known = _YES_OR_NO.get(str(given).strip().lower())
        if known is None:
            raise self._bad(name, "neither 0 nor 1")
        return known

    def path(self, name: str) -> str:
        """A path below a folder, with forward slashes.

        Raises:
            BadField: it is missing, anything else, absolute, or leads out of the folder.
        """
        given = self.get(name)
        path = inner_path(given) if isinstance(given, str) else None
        if path is None:
            raise self._bad(name, "not a path within the image folder")
        return path

    def size(self) -> tuple[int, int] | None:
        """`width` and `height` in pixels; None where they are not whole numbers above 0 (some tools write 0)."""
        sides = (_number(self.get("width")), _number(self.get("height")))
        width, height = (int(side) if side is not None and side.is_integer() else 0 for side in sides)
        return (width, height) if width > 0 and height > 0 else None

    def _bad(self, name: str, wanted: str) -> BadField:
        if name not in self._content:
            return BadField(name, "is missing")
        return BadField(name, f"is {_shown(self.get(name))}, {wanted}")


def inner_path(text: str) -> str | None:
    r"""A path below a folder, with forward slashes; None where it is none, is absolute or leads out.

    >>> inner_path(r"images\\7.jpg"), inner_path("./a b.jpg"), inner_path("../7.jpg"), inner_path(r"C:\\7.jpg")
    ('images/7.jpg', 'a b.jpg', None, None)
    """
    path = PurePosixPath(text.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", text) is not None
    return None if outside or not path.name or "\0" in text or not _encodable(text) else str(path)


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder, likewise."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _number(given: object) -> float | None:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        number = float(given)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _encodable(text: str) -> bool:
    """JSON can hold half of a surrogate pair, which no file name and no report can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(given: object) -> str:
    return "null" if given is None else shortened(given)
