"""Which columns of a Parquet file hold the images and the labels, and the classes that the labels stand for.

Images: a column named `image`, else one that Hugging Face's metadata declare as Image, else the first name of
`IMAGE_NAMES`, else any struct with `bytes`, else the only binary column. Columns that hold images come before
columns of paths.

Labels: a column named `label`, else the first that the metadata declare as ClassLabel, else the first name of
`LABEL_NAMES`. Integers, whole floats, booleans and texts are classes; null and NaN are "no label", and so is -1
where a ClassLabel declares the names. Anything else is not taken, which a note says.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tinyseed.data.base import listed
from tinyseed.data.labels import distinct, renumbered
from tinyseed.errors import InputError

IMAGE_NAMES = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "tif", "tiff"),
    *("image_bytes", "img_bytes", "image_data", "pixel_values", "bytes", "data", "content"),
    *(
        "image_path",
        "img_path",
        "image_file",
        "file_path",
        "filepath",
        "path",
        "file",
        "file_name",
        "filename",
    ),
)
"""Names of image columns, in the order in which they are taken."""

LABEL_NAMES = (
    *("label", "labels", "class", "classes", "class_name", "class_label", "class_id", "cls"),
    *("target", "targets", "category", "category_name", "category_id"),
    *("fine_label", "coarse_label", "label_name", "label_id", "label_text", "y"),
)
"""Names of label columns, in the order in which they are taken."""


REFUSED = "refused"
"""The kind of labels that are not taken because of a value among them."""


class Columns(NamedTuple):
    """What is read of a Parquet file.

    Attributes:
        image: the column of images.
        fields: those of `bytes` and `path` that it has, if it is a struct; none: plain values.
        is_path: whether plain values are paths instead of images.
        label: the column of labels, if there is one.
        names: the classes that the metadata declare for it.
        notes: what was chosen among several, and why a column was not taken.
    """

    image: str
    fields: tuple[str, ...]
    is_path: bool
    label: str | None
    names: tuple[str, ...] | None
    notes: tuple[str, ...]


def choose_columns(schema: pa.Schema, path: object) -> Columns:
    """The columns to read; `path` is the file, for errors.

    Raises:
        InputError: there is no column of images.
    """
    declared = _declared(schema)
    usable = {name: schema.field(name) for name, times in Counter(schema.names).items() if times == 1}
    ranks = {
        name: rank for name, column in usable.items() if (rank := _image_rank(column, declared)) is not None
    }
    binary = [name for name, column in usable.items() if _holds_bytes(column.type)]
    if not ranks and len(binary) == 1 and binary[0].lower() not in LABEL_NAMES:
        ranks = {binary[0]: (0, 0)}
    if not ranks:
        raise InputError(path, _why_no_image(schema, usable))
    image, *others = sorted(ranks, key=ranks.__getitem__)
    notes = []
    if others:
        notes.append(f"images are read from the column `{image}`, not from {_quoted(others)}")
    elif image.lower() not in IMAGE_NAMES and image not in declared:
        notes.append(f"images are read from the column `{image}`")
    kind = _storage(usable[image].type)
    fields = tuple(
        name for name in ("bytes", "path") if pa.types.is_struct(kind) and kind.get_field_index(name) >= 0
    )
    rest = {name: column for name, column in usable.items() if name not in ranks}
    label, label_notes = _label_column(rest, declared)
    names = declared[label].names if label in declared else None
    return Columns(image, fields, _is_text(kind), label, names, (*notes, *label_notes))


def stored(array: pa.Array) -> pa.Array:
    """An array without extension types and dictionaries around its values."""
    while isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def as_bytes(array: pa.Array) -> pa.Array:
    """Values, text or lists of bytes as large_binary."""
    array = stored(array)
    if not _is_byte_list(array.type):
        return array.cast(pa.large_binary())
    array = array.cast(pa.large_list(pa.uint8()))
    values = pc.fill_null(array.values, 0)
    bounds, (validity, *_) = array.offsets, array.buffers()
    if array.null_count:
        validity = array.is_valid().cast(pa.uint8()).to_numpy(zero_copy_only=False)
        validity = pa.py_buffer(np.packbits(validity, bitorder="little"))
    else:
        validity = None
    starts = pa.py_buffer(np.ascontiguousarray(bounds.to_numpy(), np.int64))
    content = pa.py_buffer(np.ascontiguousarray(values.to_numpy(zero_copy_only=False), np.uint8))
    return pa.Array.from_buffers(pa.large_binary(), len(array), [validity, starts, content])


class _Declared(NamedTuple):
    """A feature of Hugging Face's metadata: an image, or classes and their names."""

    is_image: bool
    names: tuple[str, ...] | None


def _declared(schema: pa.Schema) -> dict[str, _Declared]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"].items()
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
    found = {}
    for name, feature in features:
        kind = feature.get("_type") if isinstance(feature, dict) else None
        if kind == "Image":
            found[name] = _Declared(True, None)
        elif kind == "ClassLabel" and isinstance(names := feature.get("names"), list) and names:
            found[name] = _Declared(False, distinct([str(value) for value in names]))
    return found


def _image_rank(column: pa.Field, declared: Mapping[str, _Declared]) -> tuple[int, int] | None:
    """How well a column is suited, less is better; None: not at all."""
    name, kind = column.name.lower(), _storage(column.type)
    is_declared = column.name in declared and declared[column.name].is_image
    known = is_declared or name in IMAGE_NAMES
    if name == "image":
        place = 0
    elif is_declared:
        place = 1
    else:
        place = 2 + (IMAGE_NAMES.index(name) if name in IMAGE_NAMES else len(IMAGE_NAMES))
    if pa.types.is_struct(kind):
        types = {kind.field(at).name: kind.field(at).type for at in range(kind.num_fields)}
        if len(types) < kind.num_fields:
            return None
        if "bytes" in types and _holds_bytes(types["bytes"]):
            return (0, place)
        return (1, place) if known and _is_text(_storage(types.get("path", pa.null()))) else None
    if not known:
        return None
    if _holds_bytes(kind):
        return (0, place)
    return (1, place) if _is_text(kind) else None


def _storage(kind: pa.DataType) -> pa.DataType:
    """A type without extensions and dictionaries around it."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def _holds_bytes(kind: pa.DataType) -> bool:
    kind = _storage(kind)
    is_plain = (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )
    return (is_plain and not pa.types.is_decimal(kind)) or str(kind) == "binary_view" or _is_byte_list(kind)


def _is_byte_list(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_uint8(kind.value_type)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def _why_no_image(schema: pa.Schema, usable: Mapping[str, pa.Field]) -> str:
    found = listed([f"{column.name} ({_shown(column.type)})" for column in schema], most=20) or "none"
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    reasons = [f"there are several columns `{name}`" for name in twice]
    reasons += [
        f"`{name}` is of type {_shown(column.type)}, which holds no encoded image files"
        for name, column in usable.items()
        if name.lower() in IMAGE_NAMES
    ]
    given = f" {listed(reasons)};" if reasons else ""
    return (
        f"has no image column (columns: {found}):{given} it takes JPEG, PNG and other files as a struct with `bytes`, "
        "or as binary values or paths in a column named image"
    )


def _shown(kind: pa.DataType) -> str:
    text = str(kind)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _quoted(names: Iterable[str]) -> str:
    return listed([f"`{name}`" for name in names])


def _label_column(
    columns: Mapping[str, pa.Field], declared: Mapping[str, _Declared]
) -> tuple[str | None, list[str]]:
    by_name = {name.lower(): name for name in reversed(list(columns))}
    candidates = [by_name["label"]] if "label" in by_name else []
    candidates += [name for name, feature in declared.items() if feature.names and name in columns]
    candidates += [by_name[name] for name in LABEL_NAMES if name in by_name]
    candidates = list(dict.fromkeys(candidates))
    reasons = {name: _why_no_label(columns[name].type) for name in candidates}
    suited = [name for name, reason in reasons.items() if not reason]
    notes = [
        f"the column `{name}` is not taken as labels: {reason}" for name, reason in reasons.items() if reason
    ]
    if len(suited) > 1:
        notes.append(f"labels are read from the column `{suited[0]}`, not from {_quoted(suited[1:])}")
    if not candidates and columns:
        notes.append(
            f"no column is taken as labels ({_quoted(columns)}): it would be named label, class, target or category, "
            "or be declared as a ClassLabel"
        )
    return (suited[0] if suited else None), notes


def _why_no_label(kind: pa.DataType) -> str:
    kind = _storage(kind)
    if pa.types.is_nested(kind):
        return f"its type {_shown(kind)} holds several values per image, not one class"
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    is_class = is_number or pa.types.is_boolean(kind) or _is_text(kind) or _holds_bytes(kind)
    return "" if is_class or pa.types.is_null(kind) else f"its type is {_shown(kind)}, not one of classes"


@dataclass
class Labels:
    """Collects a label column, batch by batch.

    Attributes:
        numbers: of each batch, the number of each image's value, -1: none.
        values: the different values, in the order in which they came, and their numbers.
        odd: a value that cannot be a class, if there was one.
    """

    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    values: dict[int | bool | str, int] = field(default_factory=dict)
    odd: object = None

    def add(self, column: pa.Array) -> None:
        """Take a batch; null and NaN are -1."""
        column = stored(column)
        if pa.types.is_null(column.type):
            self.numbers.append(np.full(len(column), -1, np.int64))
            return
        if _is_text(column.type):  # text need not be valid UTF-8
            column = column.cast(pa.large_binary())
        encoded = column.dictionary_encode()
        numbers = [self._number(value) for value in encoded.dictionary.to_pylist()]
        places = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
        self.numbers.append(renumbered(places, numbers))

    def _number(self, value: Any) -> int:  # noqa: ANN401  (whatever Arrow holds)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        elif isinstance(value, Decimal | np.floating):
            value = float(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return -1
        if isinstance(value, float):
            if not value.is_integer():
                self.odd = value
                return -1
            value = int(value)
        return self.values.setdefault(value, len(self.values))

    def finish(self, columns: Columns, path: object) -> "Classes":
        """Number the classes in their order: numbers by value, texts by the alphabet, so that two files agree.

        Raises:
            InputError: a label is none of the declared classes.
        """
        labels = np.concatenate(self.numbers) if self.numbers else np.empty(0, np.int64)
        if self.odd is not None:
            note = f"the column `{columns.label}` is not taken as labels: {self.odd:g} is not a whole number"
            return Classes(np.full(len(labels), -1, np.int64), (), REFUSED, note)
        values, names = list(self.values), columns.names
        if not values:
            return Classes(labels, names or (), "")
        if names is not None and not isinstance(values[0], str):
            numbers = [int(value) for value in values]
            for value in numbers:
                if not -1 <= value < len(names):
                    remedy = f"has the label {value} but declares {len(names)} classes: correct its metadata"
                    raise InputError(path, remedy)
            return Classes(renumbered(labels, numbers), names, "declared names")
        kind = {bool: "booleans", int: "numbers"}.get(type(values[0]), "texts")
        order: Sequence[Any] = sorted(values)
        if names is not None and set(values) <= set(names):
            order, kind = names, "declared names"
        place = {value: number for number, value in enumerate(order)}
        return Classes(
            renumbered(labels, [place[value] for value in values]), tuple(str(value) for value in order), kind
        )


class Classes(NamedTuple):
    """Labels as numbers from 0.

    Attributes:
        labels: [n], -1: none.
        names: of the classes.
        kind: what the labels are: "numbers", "booleans", "texts", "declared names", REFUSED, or "" for no labels.
        note: why they were not taken.
    """

    labels: NDArray[np.int64]
    names: tuple[str, ...]
    kind: str
    note: str = ""
