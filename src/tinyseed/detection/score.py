"""Detections on test images, and their average precision.

Ground truth and detections take the form that pycocotools reads; the scores are computed by pycocotools.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tinyseed.data.decode import BadImage
from tinyseed.detection.annotations import AnnotatedImage, AnnotatedSplit
from tinyseed.detection.batches import Views, load
from tinyseed.detection.masks import pycocotools_mask
from tinyseed.detection.report import AveragePrecision
from tinyseed.evaluation.base import Interrupted
from tinyseed.progress import Progress

Detection = dict[str, Any]
"""An entry of COCO's results format: image_id, category_id (from 1 on), bbox [x, y, w, h], score, segmentation."""

_PIXELS_AT_ONCE = 2**26
"""Of the masks that are pasted into their image together: 256 MB."""


@torch.no_grad()
def detect(
    detector: nn.Module,
    images: Sequence[AnnotatedImage],
    views: Views,
    *,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Detection], int]:
    """A detector's detections on test images, in the images' original pixels, and the number of unreadable images.

    Raises:
        Interrupted: it was asked to stop.
    """
    device = next(detector.parameters()).device
    detector.eval()
    found: list[Detection] = []
    unreadable = 0
    for start in range(0, len(images), views.batch_size):
        end = min(start + views.batch_size, len(images))
        inputs = {}
        for position in range(start, end):
            try:
                inputs[position] = load(images[position], views.sizes[-1]).to(device)
            except BadImage:
                unreadable += 1
        outputs = detector(list(inputs.values())) if inputs else []
        for (position, resized), output in zip(inputs.items(), outputs, strict=True):
            found += _detections(position, images[position], resized, output, masks=views.masks)
        if progress is not None:
            progress.update(end, len(images), final=end == len(images))
        if stop():
            raise Interrupted
    return found, unreadable


def _detections(
    position: int, image: AnnotatedImage, resized: Tensor, output: dict[str, Tensor], *, masks: bool
) -> Iterator[Detection]:
    scale = torch.tensor([image.width / resized.shape[2], image.height / resized.shape[1]]).repeat(2)
    boxes = output["boxes"].cpu().float() * scale
    encoded = _encode(output["masks"].cpu(), boxes, image) if masks else [None] * len(boxes)
    labels, scores = output["labels"].tolist(), output["scores"].tolist()
    for box, label, score, mask in zip(boxes.tolist(), labels, scores, encoded, strict=True):
        x1, y1, x2, y2 = box
        corner_and_size = [x1, y1, x2 - x1, y2 - y1]
        entry = {"image_id": position + 1, "category_id": label, "bbox": corner_and_size, "score": score}
        yield entry if mask is None else entry | {"segmentation": mask}


def _encode(masks: Tensor, boxes: Tensor, image: AnnotatedImage) -> list[Any]:
    """Run lengths of soft masks [n, 1, 28, 28] pasted into their boxes, a few at a time to save memory."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    encoded: list[Any] = []
    at_once = max(1, min(16, _PIXELS_AT_ONCE // (image.width * image.height)))
    for part, places in zip(masks.split(at_once), boxes.split(at_once), strict=True):
        if len(part):
            pasted = paste_masks_in_image(part, places, (image.height, image.width))[:, 0] > 0.5
            columns = np.asfortranarray(pasted.permute(1, 2, 0).numpy().astype(np.uint8))
            encoded += pycocotools_mask().encode(columns)
    return encoded


def ground_truth(split: AnnotatedSplit) -> dict[str, Any]:
    """A split as the content of a COCO annotation file; images and categories count from 1."""
    annotations = []
    for number, image in enumerate(split.images, 1):
        for instance in image.instances:
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
        {"id": number, "width": image.width, "height": image.height, "file_name": image.path.name}
        for number, image in enumerate(split.images, 1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(split.classes, 1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def average_precision(
    split: AnnotatedSplit, detections: list[Detection], kind: Literal["bbox", "segm"]
) -> AveragePrecision:
    """COCO's average precision of detections on a split.

    Detecting one of VOC's difficult objects, however often, counts neither for nor against, as in VOC's own protocol.

    Source: Lin et al., Microsoft COCO, ECCV 2014, and pycocotools' COCOeval; Everingham et al., IJCV 2010, section 4.
    """
    from pycocotools.coco import COCO

    if not detections:
        return _nothing_detected(split)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints each stage
        truth: Any = COCO()
        truth.dataset = ground_truth(split)
        truth.createIndex()
        results = truth.loadRes([dict(entry) for entry in detections])  # copies: it writes into the entries
        evaluation = _evaluator()(truth, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # Axes: overlaps, recalls, classes; all areas, 100 detections.
    curves = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = {name: _mean(curves[:, :, number]) for number, name in enumerate(split.classes)}
    ap, ap50, ap75 = (100 * max(0.0, float(value)) for value in evaluation.stats[:3])
    return AveragePrecision(ap, ap50, ap75, per_class)


def _mean(curve: np.ndarray) -> float | None:
    known = curve[curve > -1]
    return 100 * float(known.mean()) if known.size else None


def _nothing_detected(split: AnnotatedSplit) -> AveragePrecision:
    """What pycocotools would return for no detections, if it accepted an empty list."""
    instances = (instance for image in split.images for instance in image.instances)
    counted = {instance.label for instance in instances if not (instance.crowd or instance.difficult)}
    per_class = {name: 0.0 if label in counted else None for label, name in enumerate(split.classes)}
    return AveragePrecision(0.0, 0.0, 0.0, per_class)


def _evaluator() -> Any:  # noqa: ANN401  (a class of pycocotools, which has no types)
    from pycocotools.cocoeval import COCOeval

    class Evaluator(COCOeval):
        """Difficult objects are ignored like crowds, but their overlaps are computed as for any other box."""

        _gts: dict[Any, list[dict[str, Any]]]

        def computeIoU(self, imgId: Any, catId: Any) -> Any:  # noqa: ANN401, N802
            difficult = [entry for entry in self._gts[imgId, catId] if entry.get("difficult")]
            for entry in difficult:
                entry["iscrowd"] = 0
            overlaps = super().computeIoU(imgId, catId)
            for entry in difficult:
                entry["iscrowd"] = 1
            return overlaps

    return Evaluator
