"""Let torchvision be imported beside a torch that its compiled library does not fit. Imports nothing of ours.

torchvision's wheel on PyPI is linked against CUDA. Beside a CPU-only torch its library `_C` cannot be loaded,
and `import torchvision` (so timm's, too) ends in "operator torchvision::nms does not exist". Two operators'
declarations are all that is wanted: they are given here, where and only where the library does not load.
"""

import importlib.machinery
import importlib.util

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# A torch.library.Library takes its operators with it when it is collected.
_declared: list[torch.library.Library] = []


def ensure_torchvision() -> None:
    """Make `import torchvision` and `import timm` work; call it before the first of either.

    Where torchvision's compiled library loads, that is all that happens: its own operators are used.
    Calling it again does nothing, and neither does a missing torchvision.
    """
    if _declared or hasattr(torch.ops.torchvision, "nms") or _load_compiled():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", non_maximum_suppression, "CPU")
    _declared.append(library)


def _load_compiled() -> bool:
    """Load torchvision's library as torchvision itself would; True when that leaves nothing to be done."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return True
    extensions = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    compiled = importlib.machinery.FileFinder(package.submodule_search_locations[0], extensions).find_spec(
        "_C"
    )
    if compiled is None or compiled.origin is None:
        return False
    try:
        torch.ops.load_library(compiled.origin)
    except OSError:
        return False
    return True


def non_maximum_suppression(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], iou_threshold: float
) -> Int64[Tensor, " kept"]:
    """Positions of the boxes that no kept box of a higher score overlaps by more than the threshold.

    Args:
        boxes: corners (x1, y1, x2, y2).
        scores: which of two overlapping boxes stays; the earlier one of equals.
        iou_threshold: intersection over union, in [0, 1].

    Returns:
        Positions by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        corner = torch.maximum(boxes[best, :2], boxes[rest, :2])
        opposite = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        overlap = (opposite - corner).clamp(min=0).prod(dim=1)
        # NaN (two boxes of no area) suppresses nothing.
        suppressed = overlap / (areas[best] + areas[rest] - overlap) > iou_threshold
        order = rest[~suppressed]
    return torch.stack(kept) if kept else order
