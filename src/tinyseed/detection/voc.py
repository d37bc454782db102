"""Reads the VOC layout: Annotations/*.xml, JPEGImages, ImageSets/Main/SPLIT.txt."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from tinyseed.detection import xml
from tinyseed.detection.annotations import (
    AnnotatedImage,
    AnnotatedSplit,
    Instance,
    Issues,
    clean_box,
    limited,
    sized_images,
)
from tinyseed.detection.fields import BadField, Fields, inner_path, is_file, is_folder
from tinyseed.errors import InputError, first_line

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
"""Of images, in lower or upper case; where one name has several images, the first counts."""

_COLUMN = re.compile(r"\s+-?\d+$")
"""What the lists of single classes have behind an image's name: 1, 0 or -1."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Annotation:
    """The content of an XML file: objects with their names, and the image's size as far as it says one.

    Objects whose name cannot be used have the error instead.
    """

    objects: list[tuple[str | BadField, Fields]]
    size: tuple[int, int] | None

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.objects if isinstance(name, str)}


def read_voc(
    folders: Sequence[str], split: str, *, classes: tuple[str, ...] | None = None, limit: int | None = None
) -> AnnotatedSplit:
    """One split of one or several VOC folders, joined (VOC07+12).

    VOC counts pixels from 1 and its corners include their pixel, so (xmin, ymin, xmax, ymax) becomes (xmin − 1,
    ymin − 1, xmax, ymax). Objects that cannot be used are dropped and counted; lists and files have to be readable.

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
    issues = Issues()
    names = [(root, name) for root in _roots(folders, split) for name in _listed(root, split, issues)]
    if not names:
        raise InputError(" ".join(folders), f"split {split} lists no images")
    annotations = [_annotation(root / "Annotations" / f"{name}.xml") for root, name in names]
    found = set().union(*(annotation.names for annotation in annotations))
    if classes is None:
        classes = tuple(sorted(found))
    elif found - set(classes):
        unknown = sorted(found - set(classes))[0]
        raise InputError(unknown, f"not a class of the train split ({', '.join(classes)})")
    kept = limited(len(names), limit)
    find = cache(_images_in)
    paths = [_image_path(*names[index], find) for index in kept]
    images = []
    sizes = sized_images(paths, [annotations[index].size for index in kept], issues)
    for index, path, size in zip(kept, paths, sizes, strict=True):
        if size is not None:
            found_here = [
                _instance(one, f"{path.name}: object {number}", size, classes, issues)
                for number, one in enumerate(annotations[index].objects, 1)
            ]
            images.append(AnnotatedImage(path, *size, tuple(one for one in found_here if one is not None)))
    return AnnotatedSplit(classes, tuple(images), issues)


def _instance(
    given: tuple[str | BadField, Fields],
    where: str,
    size: tuple[int, int],
    classes: tuple[str, ...],
    issues: Issues,
) -> Instance | None:
    """One object of an image; None where it cannot be used, which is counted in `issues`."""
    name, fields = given
    try:
        if isinstance(name, BadField):
            raise name
        inner, difficult = fields.inner("bndbox"), fields.flag("difficult")
        xmin, ymin, xmax, ymax = (inner.number(corner) for corner in _CORNERS)
    except BadField as error:
        issues.bad_object(error, where)
        return None
    flat = xmax <= xmin or ymax <= ymin  # shifting its corner would make it one pixel wide
    corner = (xmin, ymin) if flat else (xmin - 1, ymin - 1)
    box = clean_box((*corner, xmax, ymax), *size, issues, where)
    if box is None:
        return None
    area = (box[2] - box[0]) * (box[3] - box[1])
    return Instance(box, classes.index(name), difficult=difficult, area=area)


def _roots(folders: Sequence[str], split: str) -> list[Path]:
    roots = [root for folder in folders for root in _voc_folders(Path(folder))]
    with_split = [root for root in roots if is_file(_split_file(root, split))]
    if not with_split:
        splits = sorted({file.stem for root in roots for file in _split_file(root, "").parent.glob("*.txt")})
        have = f"choose from {', '.join(splits[:8])}" if splits else "it has no ImageSets/Main/*.txt"
        raise InputError(split, f"no such split in {roots[0]}; {have}", argument="split")
    return with_split


def _voc_folders(folder: Path) -> list[Path]:
    """The folder itself or its sub-folders, whichever are in VOC's layout."""
    if not is_folder(folder):
        raise InputError(folder, "no such folder")
    try:
        inside = [folder, *sorted(child for child in folder.iterdir() if is_folder(child))]
    except OSError as error:
        raise InputError(folder, f"cannot be listed ({first_line(error)}); change its permissions") from error
    found = [root for root in inside if is_folder(root / "Annotations")]
    if not found:
        remedy = "has no Annotations folder, and none of its sub-folders has one; is it in VOC's layout?"
        raise InputError(folder, remedy)
    return found


def _split_file(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _listed(root: Path, split: str, issues: Issues) -> list[str]:
    """Image names, one on each line, as their annotations are called; of the same name the first counts."""
    names: dict[str, None] = {}
    for line in _lines(_split_file(root, split)):
        name = _listed_name(root, line)
        if name in names:
            issues.add("images listed again left out", line)
        names[name] = None
    return list(names)


def _lines(file: Path) -> list[str]:
    """The lines of a text file that are not empty; UTF-8, or UTF-16 with its mark at the beginning."""
    try:
        data = file.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(file, f"cannot be read ({first_line(error)}); save it as UTF-8 text") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _listed_name(root: Path, line: str) -> str:
    """The image that a line of a list is about: the first reading of it for which there is an annotation."""
    readings = list(_readings(line))
    annotated = (name for name in readings if is_file(root / "Annotations" / f"{name}.xml"))
    return next(annotated, readings[-1] if readings else line)


def _readings(line: str) -> Iterator[str]:
    """Names that a line can stand for: with and without a column behind it, a suffix, and folders before it."""
    lines = dict.fromkeys((line, _COLUMN.sub("", line)))
    names = [PurePosixPath(inner_path(one) or "") for one in lines]
    names += [PurePosixPath(one.replace("\\", "/").rpartition("/")[2]) for one in lines]
    for name in names:
        if inner_path(name.name):
            yield str(name)
            if name.suffix.lower() in _SUFFIXES:
                yield str(name.with_suffix(""))


def _images_in(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without suffix."""
    try:
        files = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES]
    except OSError:
        return {}
    files.sort(key=lambda file: (_SUFFIXES.index(file.suffix.lower()), file.name), reverse=True)
    return {file.stem: file for file in files}


def _image_path(root: Path, name: str, find: Callable[[Path], dict[str, Path]]) -> Path:
    usual = root / "JPEGImages" / f"{name}{_SUFFIXES[0]}"
    return find(usual.parent).get(PurePosixPath(name).name, usual)


def _annotation(path: Path) -> _Annotation:
    if not is_file(path):
        raise InputError(path, "no such annotation, though the split lists its image")
    try:
        root = xml.parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read as a VOC annotation ({first_line(error)})") from error
    if root.tag != "annotation":
        raise InputError(path, f"not a VOC annotation (its root is <{root.tag}>); export it again as VOC")
    objects = [Fields(xml.fields(element)) for element in root.iter("object")]
    size = xml.fields(root).get("size")
    return _Annotation(
        [(_name(fields), fields) for fields in objects],
        Fields(size).size() if isinstance(size, dict) else None,
    )


def _name(fields: Fields) -> str | BadField:
    try:
        return fields.text("name")
    except BadField as error:
        return error
