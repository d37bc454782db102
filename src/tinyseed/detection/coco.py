"""Reads the COCO layout: annotations/instances_SPLIT.json and its images."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyseed.detection.annotations import (
    AnnotatedImage,
    AnnotatedSplit,
    Box,
    Instance,
    Issues,
    clean_box,
    limited,
    sized_images,
)
from tinyseed.detection.fields import BadField, Fields, is_file, is_folder
from tinyseed.detection.masks import compress
from tinyseed.errors import InputError, first_line

_PROBED = 20
"""Number of images that are looked for to find the image folder."""

_ROBOFLOW = "_annotations.coco.json"
"""The file that Roboflow writes beside the images of a split."""


@dataclass(frozen=True)
class _Image:
    """An entry of `images`: its path below the image folder, its size as far as it says one, its annotations."""

    path: str
    size: tuple[int, int] | None
    annotations: list[tuple[int, Fields]]


@dataclass(frozen=True)
class _Document:
    """The content of an annotation file: images in their order, and names of the categories by id in order."""

    images: list[_Image]
    categories: dict[str, str]


def read_coco(
    folder: str,
    split: str,
    *,
    classes: tuple[str, ...] | None = None,
    limit: int | None = None,
    masks: bool = False,
) -> AnnotatedSplit:
    """One split of a COCO folder.

    Annotations that cannot be used are dropped and counted; images and categories have to be right. Categories of the
    same name are one class, and entries of the same image file are one image.

    Args:
        folder: holds annotations/instances_SPLIT.json (or SPLIT.json, or Roboflow's SPLIT/_annotations.coco.json); the
            images are in SPLIT, images/SPLIT, images or the folder itself.
        split: for example train2017.
        classes: names of the classes in order; by default the categories of the file, ordered by their id.
        limit: number of images to use at most, drawn from the split.
        masks: also read the masks; objects whose mask does not fit their image are dropped and counted.

    Raises:
        InputError: another layout, no such split, not a COCO annotation file, a missing image, or categories other
            than `classes`.

    Source: the format's description at https://cocodataset.org/#format-data.
    """
    root, issues = Path(folder), Issues()
    file = _annotation_file(root, split)
    document = _parse(file, issues)
    names = document.categories
    if classes is None:
        classes = tuple(dict.fromkeys(names.values()))
    differing = sorted(set(names.values()) ^ set(classes))
    if differing:
        raise InputError(differing[0], f"a category of only one of the train and test files ({file})")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {key: numbers[name] for key, name in names.items()}
    chosen = [document.images[index] for index in limited(len(document.images), limit)]
    image_folder = _image_folder(root, split, chosen)
    paths = [image_folder / image.path for image in chosen]
    sizes = sized_images(paths, [image.size for image in chosen], issues)
    images = []
    for image, path, size in zip(chosen, paths, sizes, strict=True):
        if size is not None:
            found = [
                _instance(fields, f"{path.name}: annotations[{index}]", size, labels, issues, masks=masks)
                for index, fields in image.annotations
            ]
            images.append(AnnotatedImage(path, *size, tuple(one for one in found if one is not None)))
    return AnnotatedSplit(classes, tuple(images), issues)


def _instance(
    fields: Fields, where: str, size: tuple[int, int], labels: dict[str, int], issues: Issues, *, masks: bool
) -> Instance | None:
    """One annotation of an image; None where it cannot be used, which is counted in `issues`."""
    try:
        category, crowd = fields.key("category_id"), fields.flag("iscrowd")
        x, y, width, height = fields.numbers("bbox", 4)
    except BadField as error:
        issues.bad_object(error, where)
        return None
    if category not in labels:
        issues.add("objects of unknown categories dropped", f"{where}: category_id is {category}")
        return None
    box = clean_box((x, y, x + width, y + height), *size, issues, where)
    if box is None:
        return None
    mask = compress(fields.get("segmentation"), *size) if masks else None
    if masks and mask is None:
        issues.add("objects dropped whose mask is empty, damaged or does not match its image", where)
        return None
    area = _area(fields, box, size, issues, where)
    return Instance(box, labels[category], crowd, area=area, mask=mask)


def _area(fields: Fields, box: Box, size: tuple[int, int], issues: Issues, where: str) -> float:
    """As annotated, if it can be; that of the box otherwise: an object of an impossible area would not be scored."""
    if fields.get("area") is not None:
        try:
            area = fields.number("area")
            if 0 <= area <= size[0] * size[1]:
                return area
        except BadField:
            pass
        issues.add("impossible areas replaced by those of their boxes", where)
    return (box[2] - box[0]) * (box[3] - box[1])


def _annotation_file(root: Path, split: str) -> Path:
    folder = root / "annotations"
    if not is_folder(root):
        raise InputError(root, "no such folder")
    candidates = (
        folder / f"instances_{split}.json",
        folder / f"{split}.json",
        root / split / _ROBOFLOW,
    )
    for file in candidates:
        if is_file(file):
            return file
    splits = [file.stem.removeprefix("instances_") for file in folder.glob("instances_*.json")]
    splits += [file.parent.name for file in root.glob(f"*/{_ROBOFLOW}")]
    if not splits and not is_folder(folder):
        raise InputError(root, "has no annotations folder; is it in COCO's layout?")
    have = f"choose from {', '.join(sorted(splits)[:8])}" if splits else "it has no instances_*.json"
    raise InputError(
        split, f"no such split in {folder if is_folder(folder) else root}; {have}", argument="split"
    )


def _parse(file: Path, issues: Issues) -> _Document:
    """Images with their annotations, and categories.

    Annotations are sorted by image only; those that belong to none are counted.
    """
    content = _json(file)
    images, keys = _images(file, _entries(file, content, "images"), issues)
    if not images:
        raise InputError(file, "lists no images")
    categories = _categories(file, _entries(file, content, "categories"), issues)
    for index, entry in enumerate(_entries(file, content, "annotations")):
        where = f"annotations[{index}]"
        try:
            fields = Fields(entry)
            key = fields.key("image_id")
        except BadField as error:
            issues.bad_object(error, where)
            continue
        if key in keys:
            keys[key].annotations.append((index, fields))
        else:
            issues.add("objects of unknown images dropped", f"{where}: image_id is {key}")
    return _Document(images, categories)


def _images(file: Path, entries: list[object], issues: Issues) -> tuple[list[_Image], dict[str, _Image]]:
    """The images in their order, and by id."""
    by_path: dict[str, _Image] = {}
    by_key: dict[str, _Image] = {}
    for index, entry in enumerate(entries):
        where = f"images[{index}]"
        with _refusing(file, where):
            fields = Fields(entry)
            key, path = fields.key("id"), fields.path("file_name")
        image = _Image(path, fields.size(), [])
        if image.size is None:
            issues.add("images without a valid size in the annotations: the file's own is used", where)
        if path in by_path:
            issues.add("further entries of the same image file joined with the first", f"{where}: {path}")
            image = by_path[path]
        if by_key.setdefault(key, image) is not image:
            raise InputError(file, f"{where}: id {key} is that of another image, too; give each its own")
        by_path[path] = image
    return list(by_path.values()), by_key


def _categories(file: Path, entries: list[object], issues: Issues) -> dict[str, str]:
    """Names by id, in the order of the ids: numbers by their value, before texts."""
    names: dict[str, str] = {}
    known: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"categories[{index}]"
        with _refusing(file, where):
            fields = Fields(entry)
            key, name = fields.key("id"), fields.text("name")
        if names.get(key, name) != name:
            raise InputError(file, f"{where}: id {key} is that of another category, too; give each its own")
        if name in known and key not in names:
            issues.add("categories of the same name joined", f"{where}: {name}")
        names[key] = name
        known.add(name)
    return {key: names[key] for key in sorted(names, key=_by_value)}


def _by_value(key: str) -> tuple[bool, int, str]:
    number = key.removeprefix("-").isdecimal()
    return (not number, int(key) if number else 0, key)


@contextmanager
def _refusing(file: Path, where: str) -> Iterator[None]:
    """Turn a field that cannot be used into an error about the file."""
    try:
        yield
    except BadField as error:
        raise InputError(file, f"not a COCO instances file ({where}: {error}); correct it there") from error


def _entries(file: Path, content: dict[str, object], name: str) -> list[object]:
    entries = content.get(name)
    if not isinstance(entries, list):
        why = f"lacks {name!r}" if name not in content else f"{name!r} is not a list"
        raise InputError(file, f"not a COCO instances file ({why}); export the annotations again")
    return entries


def _json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(file, f"cannot be read as JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        why = f"it holds a {type(content).__name__}, not an object with images, annotations and categories"
        raise InputError(file, f"not a COCO instances file ({why})")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a key that stands there twice would silently hide the first."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return made


def _image_folder(root: Path, split: str, images: list[_Image]) -> Path:
    folders = (root / split, root / "images" / split, root / "images", root)
    names = [image.path for image in images[:_PROBED]]
    return next((folder for folder in folders if any(is_file(folder / name) for name in names)), folders[0])
