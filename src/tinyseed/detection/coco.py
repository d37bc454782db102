"""Reads the COCO layout: annotations/instances_SPLIT.json and its images."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from tinyseed.detection.annotations import (
    AnnotatedImage,
    AnnotatedSplit,
    Instance,
    Issues,
    clean_box,
    image_sizes,
    limited,
)
from tinyseed.detection.masks import compress
from tinyseed.errors import InputError

Entry = dict[str, Any]

_PROBED = 20
"""Number of images that are looked for to find the image folder."""


def read_coco(
    folder: str,
    split: str,
    *,
    classes: tuple[str, ...] | None = None,
    limit: int | None = None,
    masks: bool = False,
) -> AnnotatedSplit:
    """One split of a COCO folder.

    Args:
        folder: holds annotations/instances_SPLIT.json (or SPLIT.json); the images are in SPLIT, images/SPLIT, images
            or the folder itself.
        split: for example train2017.
        classes: names of the classes in order; by default the categories of the file, ordered by their id.
        limit: number of images to use at most, drawn from the split.
        masks: also read the masks; objects whose mask does not fit their image are dropped and counted.

    Raises:
        InputError: another layout, no such split, not a COCO annotation file, a missing image, or categories other
            than `classes`.

    Source: the format's description at https://cocodataset.org/#format-data.
    """
    root = Path(folder)
    file = _annotation_file(root, split)
    entries, annotations, names = _parse(file)
    if classes is None:
        classes = tuple(names[number] for number in sorted(names))
    differing = sorted(set(names.values()) ^ set(classes))
    if differing:
        raise InputError(differing[0], f"a category of only one of the train and test files ({file})")
    labels = {number: classes.index(name) for number, name in names.items()}
    entries = [entries[index] for index in limited(len(entries), limit)]
    image_folder = _image_folder(root, split, entries)
    paths = [image_folder / entry["file_name"] for entry in entries]
    issues, images = Issues(), []
    for entry, path, size in zip(entries, paths, image_sizes(paths), strict=True):
        if size is None:
            issues.add("unreadable images left out", path.name)
        elif size != (entry["width"], entry["height"]):
            issues.add("images of another size than annotated left out", path.name)
        else:
            found = [
                _instance(one, path.name, size, labels, issues, masks=masks)
                for one in annotations[entry["id"]]
            ]
            images.append(AnnotatedImage(path, *size, tuple(one for one in found if one is not None)))
    return AnnotatedSplit(classes, tuple(images), issues)


def _instance(
    entry: Entry, name: str, size: tuple[int, int], labels: dict[int, int], issues: Issues, *, masks: bool
) -> Instance | None:
    """One annotation of an image; None where it cannot be used, which is counted in `issues`."""
    x, y, width, height = map(float, entry["bbox"])
    box = clean_box((x, y, x + width, y + height), *size, issues, name)
    if box is None:
        return None
    mask = compress(entry.get("segmentation"), *size) if masks else None
    if masks and mask is None:
        issues.add("objects dropped whose mask is empty or does not match its image", name)
        return None
    area = float(entry.get("area", width * height))
    return Instance(box, labels[entry["category_id"]], bool(entry.get("iscrowd", 0)), area=area, mask=mask)


def _annotation_file(root: Path, split: str) -> Path:
    folder = root / "annotations"
    if not root.is_dir():
        raise InputError(root, "no such folder")
    if not folder.is_dir():
        raise InputError(root, "has no annotations folder; is it in COCO's layout?")
    for name in (f"instances_{split}.json", f"{split}.json"):
        if (folder / name).is_file():
            return folder / name
    splits = sorted(file.stem.removeprefix("instances_") for file in folder.glob("instances_*.json"))
    have = f"choose from {', '.join(splits[:8])}" if splits else "it has no instances_*.json"
    raise InputError(split, f"no such split in {folder}; {have}", argument="split")


def _parse(file: Path) -> tuple[list[Entry], dict[int, list[Entry]], dict[int, str]]:
    """Images, annotations by image id, and category names by id, with the fields that are used checked."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(file, f"cannot be read as JSON ({error})") from error
    try:
        images, categories = content["images"], content["categories"]
        annotations: dict[int, list[Entry]] = defaultdict(list)
        names = {entry["id"]: str(entry["name"]) for entry in categories}
        known = {entry["id"] for entry in images if (entry["file_name"], entry["width"], entry["height"])}
        for entry in content["annotations"]:
            _check(entry, known, names)
            annotations[entry["image_id"]].append(entry)
    except (KeyError, TypeError, ValueError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(file, f"not a COCO instances file ({why})") from error
    if not images:
        raise InputError(file, "lists no images")
    return images, annotations, names


def _check(entry: Entry, images: set[int], categories: dict[int, str]) -> None:
    name = f"annotation {entry.get('id')}"
    if entry["image_id"] not in images:
        raise ValueError(f"{name} refers to the unknown image {entry['image_id']}")
    if entry["category_id"] not in categories:
        raise ValueError(f"{name} refers to the unknown category {entry['category_id']}")
    if len(entry["bbox"]) != 4:
        raise ValueError(f"{name} has a bbox of {len(entry['bbox'])} numbers")


def _image_folder(root: Path, split: str, entries: list[Entry]) -> Path:
    folders = (root / split, root / "images" / split, root / "images", root)
    names = [entry["file_name"] for entry in entries[:_PROBED]]
    return next(
        (folder for folder in folders if any((folder / name).is_file() for name in names)), folders[0]
    )
