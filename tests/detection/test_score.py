import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tinyseed.detection.annotations import AnnotatedImage, AnnotatedSplit, Instance, Issues
from tinyseed.detection.batches import Views
from tinyseed.detection.coco import read_coco
from tinyseed.detection.score import average_precision, detect, ground_truth

pytest.importorskip("pycocotools")


def guesses(images, seed):
    """Detections around the truth and beside it, of the right class and the wrong one."""
    random, lines = np.random.default_rng(seed), []
    for number, image in enumerate(images, 1):
        for one in image.instances:
            for _ in range(3):
                x1, y1, x2, y2 = np.array(one.box) + random.normal(0, 2, 4)
                label = one.label if random.random() < 0.8 else 1 - one.label
                box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
                lines.append(
                    {
                        "image_id": number,
                        "category_id": label + 1,
                        "bbox": box,
                        "score": float(random.random()),
                        "segmentation": one.mask,
                    }
                )
    return lines


def by_hand(folder, truth, lines, kind):
    """As pycocotools' own demo does it, from files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    (folder / "results.json").write_text(json.dumps(lines))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "results.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:3]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_precision_is_pycocotools_by_hand_on_the_original_file(squares_coco, tmp_path, kind, seed):
    given = read_coco(str(squares_coco), "val2017", masks=True)
    lines = guesses(given.images, seed)
    made = average_precision(given, lines, kind)
    renumbered = [
        line
        | {
            "image_id": 500 + 11 + line["image_id"],
            "category_id": {1: 3, 2: 7}[line["category_id"]],
            "segmentation": {**line["segmentation"], "counts": line["segmentation"]["counts"].decode()},
        }
        for line in lines
    ]
    wanted = by_hand(tmp_path, squares_coco / "annotations/instances_val2017.json", renumbered, kind)
    np.testing.assert_allclose((made.ap, made.ap50, made.ap75), wanted, rtol=1e-12)
    assert 0 < made.ap < 100
    assert made.ap == pytest.approx(np.mean(list(made.per_class.values())))


def split(*instances, classes=("cell",)):
    return AnnotatedSplit(classes, (AnnotatedImage(Path("a.jpg"), 100, 100, instances),), Issues())


def line(box, score, label=0):
    x1, y1, x2, y2 = box
    return {"image_id": 1, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}


def test_difficult_objects_are_neither_right_nor_wrong():
    first, second = (0.0, 0.0, 20.0, 20.0), (50.0, 50.0, 80.0, 80.0)
    lines = [line(second, 0.9), line(second, 0.8), line(first, 0.7)]
    easy = split(Instance(first, 0, area=400.0), Instance(second, 0, area=900.0))
    difficult = split(Instance(first, 0, area=400.0), Instance(second, 0, difficult=True, area=900.0))
    assert average_precision(easy, lines, "bbox").ap < 90  # the second of the two is a mistake
    assert average_precision(difficult, lines, "bbox").ap == pytest.approx(100)
    # A small box inside a difficult one overlaps it little, so it is a mistake; inside a crowd it would be ignored.
    inside = [line((55.0, 55.0, 60.0, 60.0), 0.9), line(first, 0.7)]
    crowd = split(Instance(first, 0, area=400.0), Instance(second, 0, crowd=True, area=900.0))
    assert average_precision(crowd, inside, "bbox").ap == pytest.approx(100)
    assert average_precision(difficult, inside, "bbox").ap == pytest.approx(50)


def test_no_detections_and_unseen_classes():
    shown = split(Instance((0.0, 0.0, 20.0, 20.0), 0, area=400.0), classes=("cell", "other"))
    nothing = average_precision(shown, [], "bbox")
    assert (nothing.ap, nothing.ap50, nothing.ap75) == (0, 0, 0)
    assert nothing.per_class == {"cell": 0.0, "other": None}
    found = average_precision(shown, [line((0.0, 0.0, 20.0, 20.0), 0.5)], "bbox")
    assert found.ap == pytest.approx(100)
    assert found.per_class == {"cell": pytest.approx(100), "other": None}


def test_ground_truth_is_a_coco_file():
    content = ground_truth(split(Instance((1.0, 2.0, 11.0, 22.0), 1, area=77.0), classes=("a", "b")))
    (entry,) = content["annotations"]
    assert (entry["bbox"], entry["category_id"], entry["area"]) == ([1.0, 2.0, 10.0, 20.0], 2, 77.0)


class Oracle(torch.nn.Module):
    """A detector that returns the annotations, at the scale of the resized image."""

    def __init__(self, images, scale):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.images, self.scale, self.seen = images, scale, []

    def forward(self, images):
        outputs = []
        for image in images:
            annotated = self.images[len(self.seen)]
            self.seen.append(tuple(image.shape))
            outputs.append(
                {
                    "boxes": torch.tensor([one.box for one in annotated.instances]) * self.scale,
                    "labels": torch.tensor([one.label + 1 for one in annotated.instances]),
                    "scores": torch.ones(len(annotated.instances)),
                    "masks": torch.ones(len(annotated.instances), 1, 28, 28),
                }
            )
        return outputs


def test_detections_come_back_in_the_images_own_pixels(squares_coco):
    given = read_coco(str(squares_coco), "val2017", masks=True)
    oracle = Oracle(given.images, 0.5)
    lines, unreadable = detect(oracle, given.images, Views(4, (64, 32), masks=True))
    assert unreadable == 0
    assert oracle.seen == [(3, 32, 40)] * 6
    assert average_precision(given, lines, "bbox").ap == pytest.approx(100)
    assert average_precision(given, lines, "segm").ap > 90
