"""Detections of test images, and their average precision by pycocotools. Imports batches.py, masks.py, scenes.py.

Ground truth and detections take the form that pycocotools reads; the arithmetic is all its own.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tinyseed.data.decode import BadImage
from tinyseed.evaluation.detect.batches import Sizes, load
from tinyseed.evaluation.detect.masks import pycocotools_mask
from tinyseed.evaluation.detect.progress import Progress
from tinyseed.evaluation.detect.scenes import Scene

Detection = dict[str, Any]
"""A line of COCO's results format: image_id, category_id (from 1 on), bbox [x, y, w, h], score, segmentation."""

_MASKS_AT_ONCE = 16


@dataclass(frozen=True)
class Precision:
    """Average precision in per cent, as COCO has it: over overlaps .5 to .95, at .5, at .75.

    Attributes:
        per_class: the first of them for each class; None for one that the test images do not show.
    """

    ap: float
    ap50: float
    ap75: float
    per_class: dict[str, float | None]


@torch.no_grad()
def detect(
    detector: nn.Module,
    scenes: Sequence[Scene],
    sizes: Sizes,
    *,
    batch_size: int,
    masks: bool,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Detection], int] | None:
    """What a detector finds on test images, in their own pixels; with the number of unreadable images.

    Returns:
        None where it was stopped.
    """
    device = next(detector.parameters()).device
    detector.eval()
    found: list[Detection] = []
    unreadable = 0
    for start in range(0, len(scenes), batch_size):
        places, images = [], []
        for place in range(start, min(start + batch_size, len(scenes))):
            scene = scenes[place]
            try:
                images.append(load(scene, sizes.fit(scene.width, scene.height, sizes.short[-1])).to(device))
                places.append(place)
            except BadImage:
                unreadable += 1
        for place, image, output in zip(places, images, detector(images) if images else [], strict=True):
            found += _described(place, scenes[place], image, output, masks=masks)
        if progress is not None:
            progress.update(min(start + batch_size, len(scenes)), len(scenes))
        if stop():
            return None
    return found, unreadable


def _described(
    place: int, scene: Scene, image: Tensor, output: dict[str, Tensor], *, masks: bool
) -> Iterator[Detection]:
    scale = torch.tensor([scene.width / image.shape[2], scene.height / image.shape[1]]).repeat(2)
    boxes = output["boxes"].cpu().float() * scale
    encoded = _encode(output["masks"].cpu(), boxes, scene) if masks else [None] * len(boxes)
    for box, label, score, mask in zip(
        boxes.tolist(), output["labels"].tolist(), output["scores"].tolist(), encoded, strict=True
    ):
        x1, y1, x2, y2 = box
        line = {
            "image_id": place + 1,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        yield line if mask is None else line | {"segmentation": mask}


def _encode(masks: Tensor, boxes: Tensor, scene: Scene) -> list[Any]:
    """Run lengths of soft masks [n, 1, 28, 28] pasted into their boxes; some at a time, for they are large."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    encoded: list[Any] = []
    for part, places in zip(masks.split(_MASKS_AT_ONCE), boxes.split(_MASKS_AT_ONCE), strict=True):
        if len(part):
            pasted = paste_masks_in_image(part, places, (scene.height, scene.width))[:, 0] > 0.5
            columns = np.asfortranarray(pasted.permute(1, 2, 0).numpy().astype(np.uint8))
            encoded += pycocotools_mask().encode(columns)
    return encoded


def ground_truth(scenes: Sequence[Scene], classes: Sequence[str]) -> dict[str, Any]:
    """Scenes as the content of a COCO annotation file; images and categories count from 1."""
    annotations = []
    for number, scene in enumerate(scenes, 1):
        for instance in scene.instances:
            x1, y1, x2, y2 = instance.box
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": instance.label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": instance.area,
                "iscrowd": int(instance.crowd or instance.difficult),
                "difficult": int(instance.difficult),
            }
            annotations.append(entry if instance.mask is None else entry | {"segmentation": instance.mask})
    images = [
        {"id": number, "width": scene.width, "height": scene.height, "file_name": scene.path.name}
        for number, scene in enumerate(scenes, 1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def average_precision(
    scenes: Sequence[Scene],
    classes: Sequence[str],
    detections: list[Detection],
    kind: Literal["bbox", "segm"],
) -> Precision:
    """COCO's average precision of detections.

    VOC's difficult objects are neither right nor wrong to find, however often, as VOC's own protocol has them.

    Source: Lin et al., Microsoft COCO, ECCV 2014, and pycocotools' COCOeval; Everingham et al., IJCV 2010, section 4.
    """
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):  # it talks about each stage
        truth: Any = COCO()
        truth.dataset = ground_truth(scenes, classes)
        truth.createIndex()
        if not detections:
            return _nothing_found(scenes, classes)
        results = truth.loadRes([dict(line) for line in detections])  # a copy: it writes into the lines
        evaluation = _evaluator()(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    curves = evaluation.eval["precision"][
        :, :, :, 0, 2
    ]  # overlaps, recalls, classes; all areas, 100 detections
    per_class = {name: _mean(curves[:, :, number]) for number, name in enumerate(classes)}
    ap, ap50, ap75 = (100 * max(0.0, float(value)) for value in evaluation.stats[:3])
    return Precision(ap, ap50, ap75, per_class)


def _mean(curve: np.ndarray) -> float | None:
    known = curve[curve > -1]
    return 100 * float(known.mean()) if known.size else None


def _nothing_found(scenes: Sequence[Scene], classes: Sequence[str]) -> Precision:
    """What pycocotools would say of no detections, if it took an empty list."""
    shown = {one.label for scene in scenes for one in scene.instances if not (one.crowd or one.difficult)}
    return Precision(
        0.0, 0.0, 0.0, {name: 0.0 if label in shown else None for label, name in enumerate(classes)}
    )


def _evaluator() -> Any:  # noqa: ANN401  (a class of pycocotools, which has no types)
    from pycocotools.cocoeval import COCOeval

    class Evaluator(COCOeval):
        """Difficult objects count as crowds (found as often as one likes), but overlap as any other box does."""

        _gts: dict[Any, list[dict[str, Any]]]

        def computeIoU(self, imgId: Any, catId: Any) -> Any:  # noqa: ANN401, N802
            entries = self._gts[imgId, catId]
            marked = [entry for entry in entries if entry.get("difficult")]
            for entry in marked:
                entry["iscrowd"] = 0
            overlaps = super().computeIoU(imgId, catId)
            for entry in marked:
                entry["iscrowd"] = 1
            return overlaps

    return Evaluator
