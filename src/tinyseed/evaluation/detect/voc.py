"""The VOC layout: Annotations/*.xml, JPEGImages, ImageSets/Main/SPLIT.txt. Imports scenes.py, data and errors."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyseed.data.split import sample
from tinyseed.errors import InputError
from tinyseed.evaluation.detect.scenes import Box, Instance, LeftOut, Scene, SceneSet, clean_box, measure

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG")


@dataclass(frozen=True)
class _Object:
    name: str
    box: Box
    difficult: bool


def read_voc(
    folders: Sequence[str],
    split: str,
    flag: str,
    *,
    classes: tuple[str, ...] | None = None,
    limit: int | None = None,
) -> SceneSet:
    """One split of VOC folders, joined (VOC07+12).

    Corners count from 1 and include their pixel, so (xmin, ymin, xmax, ymax) becomes (xmin − 1, ymin − 1, xmax,
    ymax).

    Args:
        folders: with Annotations, JPEGImages and ImageSets/Main; or folders of such folders. Of several, those
            count that have the split (VOC2012's test split is not public).
        split: file in ImageSets/Main, without .txt.
        flag: which argument named the folders, for errors.
        classes: names in their order; by default the ones that the split shows, in alphabetical order.
        limit: use so many images, drawn from the split.

    Raises:
        InputError: no such layout or split, a missing image or annotation, or a class that `classes` has not.

    Source: Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010; corners as in its devkit.
    """
    names = [(root, name) for root in _roots(folders, split, flag) for name in _listed(root, split)]
    if not names:
        raise InputError(flag, " ".join(folders), f"split {split} lists no images")
    objects = [_objects(_annotation(root, name, flag), flag) for root, name in names]
    seen = {item.name for items in objects for item in items}
    if classes is None:
        classes = tuple(sorted(seen))
    elif seen - set(classes):
        strange = sorted(seen - set(classes))[0]
        raise InputError(flag, strange, f"is no class of the train split ({', '.join(classes)})")
    kept = range(len(names)) if limit is None else sample(np.arange(len(names)), limit, seed=0, name="limit")
    left_out, scenes = LeftOut(), []
    paths = [_image(*names[index]) for index in kept]
    for index, path, size in zip(kept, paths, measure(paths, flag), strict=True):
        if size is None:
            left_out.note("unreadable images left out", path.name)
            continue
        scenes.append(_scene(path, size, objects[index], classes, left_out))
    return SceneSet(classes, tuple(scenes), left_out)


def _scene(
    path: Path, size: tuple[int, int], objects: list[_Object], classes: tuple[str, ...], left_out: LeftOut
) -> Scene:
    instances = []
    for item in objects:
        xmin, ymin, xmax, ymax = item.box
        flat = xmax <= xmin or ymax <= ymin  # with its own pixel counted it would be one pixel wide
        corners = item.box if flat else (xmin - 1, ymin - 1, xmax, ymax)
        box = clean_box(corners, *size, left_out, path.name)
        if box is not None:
            area = (box[2] - box[0]) * (box[3] - box[1])
            instances.append(Instance(box, classes.index(item.name), difficult=item.difficult, area=area))
    return Scene(path, *size, tuple(instances))


def _roots(folders: Sequence[str], split: str, flag: str) -> list[Path]:
    roots = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(flag, folder, "no such folder")
        inside = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
        found = [root for root in inside if (root / "Annotations").is_dir()]
        if not found:
            raise InputError(
                flag, folder, "has no Annotations folder, nor has a folder in it; is it VOC's layout?"
            )
        roots += found
    with_split = [root for root in roots if _split_file(root, split).is_file()]
    if not with_split:
        splits = sorted({file.stem for root in roots for file in _split_file(root, "").parent.glob("*.txt")})
        have = f"there are {', '.join(splits[:8])}" if splits else "there is no ImageSets/Main/*.txt"
        raise InputError(f"{flag.removesuffix('-data')}-split", split, f"no such split in {roots[0]}; {have}")
    return with_split


def _split_file(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _listed(root: Path, split: str) -> list[str]:
    """A line is a name, in a class' own lists with a number after it."""
    lines = _split_file(root, split).read_text(encoding="utf-8").splitlines()
    return [line.split()[0] for line in lines if line.strip()]


def _image(root: Path, name: str) -> Path:
    places = [root / "JPEGImages" / f"{name}{suffix}" for suffix in _SUFFIXES]
    return next((place for place in places if place.is_file()), places[0])


def _annotation(root: Path, name: str, flag: str) -> Path:
    path = root / "Annotations" / f"{name}.xml"
    if not path.is_file():
        raise InputError(flag, path, "no such annotation, though the split lists its image")
    return path


def _objects(path: Path, flag: str) -> list[_Object]:
    try:
        root = ET.parse(path).getroot()
        return [_object(element) for element in root.iter("object")]
    except (ET.ParseError, ValueError) as error:
        raise InputError(flag, path, f"is no readable VOC annotation ({error})") from error


def _object(element: ET.Element) -> _Object:
    name, box = element.findtext("name", "").strip(), element.find("bndbox")
    if not name or box is None:
        raise ValueError("an object without name or bndbox")
    x1, y1, x2, y2 = (float(box.findtext(corner, "")) for corner in ("xmin", "ymin", "xmax", "ymax"))
    return _Object(name, (x1, y1, x2, y2), element.findtext("difficult", "0").strip() == "1")
