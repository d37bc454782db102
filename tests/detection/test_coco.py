import json

import numpy as np
import pytest

from tinyseed.detection.coco import read_coco
from tinyseed.detection.masks import compress, decompress
from tinyseed.errors import InputError

pytest.importorskip("pycocotools")


def test_boxes_and_masks_are_those_of_the_json(squares_coco):
    given = read_coco(str(squares_coco), "train2017", masks=True)
    content = json.loads((squares_coco / "annotations/instances_train2017.json").read_text())
    assert given.classes == ("blue", "red")
    for image, listed in zip(given.images, content["images"], strict=True):
        wanted = [entry for entry in content["annotations"] if entry["image_id"] == listed["id"]]
        assert [{0: 3, 1: 7}[one.label] for one in image.instances] == [one["category_id"] for one in wanted]
        for one, entry in zip(image.instances, wanted, strict=True):
            x, y, width, height = entry["bbox"]
            assert one.box == (x, y, x + width, y + height)
            square = np.zeros((64, 80), np.uint8)
            square[y : y + height, x : x + width] = 1
            np.testing.assert_array_equal(decompress(one.mask), square)


def test_run_lengths_of_coco_mini(shared_data):
    given = read_coco(str(shared_data / "coco-mini"), "train2017", masks=True)
    content = json.loads((shared_data / "coco-mini/annotations/instances_train2017.json").read_text())
    assert len(given.images) == 70
    assert len(given.classes) == 80
    assert given.boxes + sum(given.issues.counts.values()) >= len(content["annotations"]) == 586
    assert sum(one.crowd for image in given.images for one in image.instances) == 6
    entry = content["annotations"][0]
    height, width = entry["segmentation"]["size"]
    runs, mask = entry["segmentation"]["counts"], np.zeros(height * width, np.uint8)
    ends = np.cumsum(runs)
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        mask[start:end] = 1
    first = given.images[0].instances[0]
    np.testing.assert_array_equal(decompress(first.mask), mask.reshape(width, height).T)


def test_masks_that_do_not_match_are_none():
    run_lengths = {"size": [4, 6], "counts": [2, 4, 18]}
    assert decompress(compress(run_lengths, 6, 4)).sum() == 4
    assert compress(run_lengths, 4, 6) is None
    assert compress({"size": [4, 6], "counts": [2, 4, 17]}, 6, 4) is None
    assert compress({"size": [4, 6], "counts": [24]}, 6, 4) is None
    assert compress([[20, 20, 30, 20, 30, 30]], 6, 4) is None
    assert compress([[1, 1, 2, 2]], 6, 4) is None
    assert compress([], 6, 4) is None
    assert compress(None, 6, 4) is None


def test_what_cannot_be_used_is_dropped_and_counted(coco_json):
    def spoil(content):
        content["annotations"][0]["segmentation"] = {"size": [80, 64], "counts": [0, 80 * 64]}
        content["annotations"][1]["bbox"] = [5, 5, 0, 10]
        content["annotations"][2]["bbox"] = [75, 5, 40, 10]
        content["images"][1]["width"] = 81

    folder = coco_json(spoil)
    given = read_coco(str(folder), "train2017", masks=True)
    assert dict(given.issues.counts) == {
        "objects dropped whose mask is empty, damaged or does not match its image": 1,
        "boxes of zero size dropped": 1,
        "images of another size than annotated left out": 1,
    }
    assert given.images[0].instances == ()
    assert len(read_coco(str(folder), "train2017").images[0].instances) == 1  # boxes need no mask


def test_a_crowd_is_kept_as_one(coco_json):
    folder = coco_json(lambda content: content["annotations"][0].update(iscrowd=1))
    given = read_coco(str(folder), "train2017")
    assert [one.crowd for one in given.images[0].instances] == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "lacks 'categories'"),
        (lambda content: content.update(images=[], annotations=[]), "lists no images"),
        (
            lambda content: content["images"][0].update(file_name="x.jpg"),
            "1 of 2 annotated images are missing",
        ),
    ],
)
def test_wrong_files_are_one_line_errors(coco_json, change, message):
    with pytest.raises(InputError, match=message):
        read_coco(str(coco_json(change)), "train2017")


def test_layout_mistakes_are_one_line_errors(coco_json, tmp_path):
    folder = coco_json(lambda content: None)
    with pytest.raises(InputError, match=r"split=val2017: no such split.*choose from train2017"):
        read_coco(str(folder), "val2017")
    with pytest.raises(InputError, match="has no annotations folder"):
        read_coco(str(tmp_path), "val2017")
    with pytest.raises(InputError, match="green: a category of only one"):
        read_coco(str(folder), "train2017", classes=("blue", "green", "red"))
    (folder / "annotations/instances_train2017.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        read_coco(str(folder), "train2017")
    (folder / "annotations/instances_train2017.json").write_text("[]")
    with pytest.raises(InputError, match="not a COCO instances file"):
        read_coco(str(folder), "train2017")
