"""The COCO layout: annotations/instances_SPLIT.json and its images. Imports scenes.py, masks.py, data and errors."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyseed.data.split import sample
from tinyseed.errors import InputError
from tinyseed.evaluation.detect.masks import compress
from tinyseed.evaluation.detect.scenes import Instance, LeftOut, Scene, SceneSet, clean_box, measure

Entry = dict[str, Any]

_LOOKED_FOR = 20
"""Images by which the folder is found."""


def read_coco(
    folder: str,
    split: str,
    flag: str,
    *,
    classes: tuple[str, ...] | None = None,
    limit: int | None = None,
    masks: bool = False,
) -> SceneSet:
    """One split of a COCO folder.

    Args:
        folder: with annotations/instances_SPLIT.json (or SPLIT.json); images lie in SPLIT, images/SPLIT, images
            or the folder itself.
        split: such as train2017.
        flag: which argument named the folder, for errors.
        classes: names in their order; by default the file's categories by their number.
        limit: use so many images, drawn from the split.
        masks: read the masks, too; objects whose mask does not fit their image are dropped and counted.

    Raises:
        InputError: no such layout or split, a file that is no COCO annotation, a missing image, or a class that
            `classes` has not.

    Source: the format's description at https://cocodataset.org/#format-data.
    """
    root = Path(folder)
    file = _annotation_file(root, split, flag)
    images, annotations, names = _parse(file, flag)
    if classes is None:
        classes = tuple(names[number] for number in sorted(names))
    elif set(names.values()) != set(classes):
        strange = sorted(set(names.values()) ^ set(classes))[0]
        raise InputError(flag, strange, f"is a category of only one of the train and test files ({file})")
    labels = {number: classes.index(name) for number, name in names.items()}
    if limit is not None:
        images = [images[index] for index in sample(np.arange(len(images)), limit, seed=0, name="limit")]
    pictures = _picture_folder(root, split, images)
    paths = [pictures / image["file_name"] for image in images]
    left_out, scenes = LeftOut(), []
    for image, path, size in zip(images, paths, measure(paths, flag), strict=True):
        if size is None or size != (image["width"], image["height"]):
            kind = "unreadable images" if size is None else "images of another size than annotated"
            left_out.note(f"{kind} left out", path.name)
            continue
        scene = Scene(path, *size, ())
        found = [_instance(entry, scene, labels, left_out, masks=masks) for entry in annotations[image["id"]]]
        scenes.append(replace(scene, instances=tuple(one for one in found if one is not None)))
    return SceneSet(classes, tuple(scenes), left_out)


def _instance(
    entry: Entry, scene: Scene, labels: dict[int, int], left_out: LeftOut, *, masks: bool
) -> Instance | None:
    """One annotation of a scene; None, counted, where it cannot be used."""
    x, y, width, height = map(float, entry["bbox"])
    where = scene.path.name
    box = clean_box((x, y, x + width, y + height), scene.width, scene.height, left_out, where)
    if box is None:
        return None
    mask = compress(entry.get("segmentation"), scene.width, scene.height) if masks else None
    if masks and mask is None:
        left_out.note("objects dropped whose mask is empty or does not match its image", where)
        return None
    area = float(entry.get("area", width * height))
    return Instance(box, labels[entry["category_id"]], bool(entry.get("iscrowd", 0)), area=area, mask=mask)


def _annotation_file(root: Path, split: str, flag: str) -> Path:
    folder = root / "annotations"
    if not root.is_dir():
        raise InputError(flag, root, "no such folder")
    if not folder.is_dir():
        raise InputError(flag, root, "has no annotations folder; is it COCO's layout?")
    for name in (f"instances_{split}.json", f"{split}.json"):
        if (folder / name).is_file():
            return folder / name
    splits = sorted(file.stem.removeprefix("instances_") for file in folder.glob("instances_*.json"))
    have = f"there are {', '.join(splits[:8])}" if splits else "there is no instances_*.json"
    raise InputError(f"{flag.removesuffix('-data')}-split", split, f"no such split in {folder}; {have}")


def _parse(file: Path, flag: str) -> tuple[list[Entry], dict[int, list[Entry]], dict[int, str]]:
    """Images, annotations by image, and categories; each checked for the fields that are used."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(flag, file, f"is no JSON ({error})") from error
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
        raise InputError(flag, file, f"is no COCO instances file ({why})") from error
    if not images:
        raise InputError(flag, file, "lists no images")
    return images, annotations, names


def _check(entry: Entry, known: set[int], names: dict[int, str]) -> None:
    if entry["image_id"] not in known:
        raise ValueError(f"annotation {entry.get('id')} is of the unknown image {entry['image_id']}")
    if entry["category_id"] not in names:
        raise ValueError(f"annotation {entry.get('id')} is of the unknown category {entry['category_id']}")
    if len(entry["bbox"]) != 4:
        raise ValueError(f"annotation {entry.get('id')} has a bbox of {len(entry['bbox'])} numbers")


def _picture_folder(root: Path, split: str, images: list[Entry]) -> Path:
    places = (root / split, root / "images" / split, root / "images", root)
    names = [image["file_name"] for image in images[:_LOOKED_FOR]]
    return next((place for place in places if any((place / name).is_file() for name in names)), places[0])
