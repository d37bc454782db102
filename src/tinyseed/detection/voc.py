"""Reads the VOC layout: Annotations/*.xml, JPEGImages, ImageSets/Main/SPLIT.txt."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyseed.detection.annotations import (
    AnnotatedImage,
    AnnotatedSplit,
    Box,
    Instance,
    Issues,
    clean_box,
    image_sizes,
    limited,
)
from tinyseed.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")


@dataclass(frozen=True)
class _Object:
    name: str
    box: Box
    difficult: bool


def read_voc(
    folders: Sequence[str], split: str, *, classes: tuple[str, ...] | None = None, limit: int | None = None
) -> AnnotatedSplit:
    """One split of one or several VOC folders, joined (VOC07+12).

    VOC counts pixels from 1 and its corners include their pixel, so (xmin, ymin, xmax, ymax) becomes (xmin − 1,
    ymin − 1, xmax, ymax).

    Args:
        folders: each holds Annotations, JPEGImages and ImageSets/Main, or sub-folders that do. Of several, only
            those that have the split are used (the test split of VOC2012 is not public).
        split: a file in ImageSets/Main, without .txt.
        classes: names of the classes in order; by default those in the split, in alphabetical order.
        limit: number of images to use at most, drawn from the split.

    Raises:
        InputError: another layout, no such split, a missing image or annotation, or a class not in `classes`.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010; corners as in its devkit.
    """
    names = [(root, name) for root in _roots(folders, split) for name in _listed(root, split)]
    if not names:
        raise InputError(" ".join(folders), f"split {split} lists no images")
    objects = [_objects(root / "Annotations" / f"{name}.xml") for root, name in names]
    found = {item.name for items in objects for item in items}
    if classes is None:
        classes = tuple(sorted(found))
    elif found - set(classes):
        unknown = sorted(found - set(classes))[0]
        raise InputError(unknown, f"not a class of the train split ({', '.join(classes)})")
    issues, images = Issues(), []
    kept = limited(len(names), limit)
    paths = [_image_path(*names[index]) for index in kept]
    for index, path, size in zip(kept, paths, image_sizes(paths), strict=True):
        if size is None:
            issues.add("unreadable images left out", path.name)
        else:
            images.append(_annotated(path, size, objects[index], classes, issues))
    return AnnotatedSplit(classes, tuple(images), issues)


def _annotated(
    path: Path, size: tuple[int, int], objects: list[_Object], classes: tuple[str, ...], issues: Issues
) -> AnnotatedImage:
    instances = []
    for item in objects:
        xmin, ymin, xmax, ymax = item.box
        flat = xmax <= xmin or ymax <= ymin  # shifting its corner would make it one pixel wide
        corners = item.box if flat else (xmin - 1, ymin - 1, xmax, ymax)
        box = clean_box(corners, *size, issues, path.name)
        if box is not None:
            area = (box[2] - box[0]) * (box[3] - box[1])
            instances.append(Instance(box, classes.index(item.name), difficult=item.difficult, area=area))
    return AnnotatedImage(path, *size, tuple(instances))


def _roots(folders: Sequence[str], split: str) -> list[Path]:
    roots = [root for folder in folders for root in _voc_folders(Path(folder))]
    with_split = [root for root in roots if _split_file(root, split).is_file()]
    if not with_split:
        splits = sorted({file.stem for root in roots for file in _split_file(root, "").parent.glob("*.txt")})
        have = f"choose from {', '.join(splits[:8])}" if splits else "it has no ImageSets/Main/*.txt"
        raise InputError(split, f"no such split in {roots[0]}; {have}", argument="split")
    return with_split


def _voc_folders(folder: Path) -> list[Path]:
    """The folder itself or its sub-folders, whichever are in VOC's layout."""
    if not folder.is_dir():
        raise InputError(folder, "no such folder")
    inside = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    found = [root for root in inside if (root / "Annotations").is_dir()]
    if not found:
        remedy = "has no Annotations folder, and none of its sub-folders has one; is it in VOC's layout?"
        raise InputError(folder, remedy)
    return found


def _split_file(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _listed(root: Path, split: str) -> list[str]:
    """Image names, one on each line; the lists of single classes have a number behind it."""
    lines = _split_file(root, split).read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _image_path(root: Path, name: str) -> Path:
    candidates = [root / "JPEGImages" / f"{name}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _objects(path: Path) -> list[_Object]:
    if not path.is_file():
        raise InputError(path, "no such annotation, though the split lists its image")
    try:
        return [_object(element) for element in ET.parse(path).getroot().iter("object")]
    except (ET.ParseError, ValueError) as error:
        raise InputError(path, f"cannot be read as a VOC annotation ({error})") from error


def _object(element: ET.Element) -> _Object:
    name, box = element.findtext("name", "").strip(), element.find("bndbox")
    if not name or box is None:
        raise ValueError("an object without name or bndbox")
    x1, y1, x2, y2 = (float(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax"))
    return _Object(name, (x1, y1, x2, y2), element.findtext("difficult", "0").strip() == "1")
