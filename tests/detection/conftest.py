"""Tiny detection data sets of colored squares, in both layouts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

COLORS = {"blue": (30, 60, 220), "red": (220, 50, 30)}
SIDE = 64


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test here."""


def draw(number):
    """An image of one red and one blue square on noise, and their boxes (x1, y1, x2, y2; x2, y2 outside)."""
    random = np.random.default_rng(number)
    image = Image.fromarray(random.integers(90, 140, (SIDE, SIDE + 16, 3), dtype=np.uint8))
    boxes = {}
    for place, (name, color) in enumerate(COLORS.items()):
        side = int(random.integers(16, 30))
        x, y = int(random.integers(2 + 40 * place, 8 + 40 * place)), int(random.integers(2, SIDE - side - 2))
        ImageDraw.Draw(image).rectangle((x, y, x + side - 1, y + side - 1), fill=color)
        boxes[name] = (x, y, x + side, y + side)
    return image, boxes


def write_voc(folder: Path, splits: dict[str, range], extra: str = "") -> Path:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, numbers in splits.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{number:03d}\n" for number in numbers))
        for number in numbers:
            image, boxes = draw(number)
            image.save(folder / f"JPEGImages/{number:03d}.jpg", quality=95)
            objects = "".join(
                voc_object(name, (x1 + 1, y1 + 1, x2, y2)) for name, (x1, y1, x2, y2) in boxes.items()
            )
            text = f"<annotation>{objects}{extra}</annotation>"
            (folder / f"Annotations/{number:03d}.xml").write_text(text)
    return folder


def voc_object(name, corners, difficult=0):
    box = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def write_coco(folder: Path, splits: dict[str, range]) -> Path:
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": 3, "name": "blue"}, {"id": 7, "name": "red"}]
    for split, numbers in splits.items():
        (folder / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for number in numbers:
            image, boxes = draw(number)
            name = f"{number:03d}.jpg"
            image.save(folder / "images" / split / name, quality=95)
            images.append(
                {"id": 500 + number, "file_name": name, "width": image.width, "height": image.height}
            )
            for kind, (x1, y1, x2, y2) in boxes.items():
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 500 + number,
                        "category_id": {"blue": 3, "red": 7}[kind],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def squares_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(
        tmp_path_factory.mktemp("voc") / "VOC2007", {"trainval": range(12), "test": range(12, 18)}
    )


@pytest.fixture(scope="session")
def squares_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(
        tmp_path_factory.mktemp("coco") / "c", {"train2017": range(12), "val2017": range(12, 18)}
    )


@pytest.fixture
def coco_json(tmp_path: Path):
    """A small COCO folder whose annotations a function changes before they are written."""

    def make(change) -> Path:
        folder = write_coco(tmp_path / "coco", {"train2017": range(2)})
        file = folder / "annotations/instances_train2017.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return folder

    return make


@pytest.fixture
def voc_folder(tmp_path: Path):
    """A VOC folder of two images with one more object in each, as XML."""

    def make(extra: str = "") -> Path:
        return write_voc(tmp_path / "voc", {"trainval": range(2)}, extra)

    return make
