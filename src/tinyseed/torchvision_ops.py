"""Make torchvision work with a torch build that its compiled library does not fit.

torchvision's wheel on PyPI is linked against CUDA. With a CPU-only torch its library `_C` cannot be loaded,
and `import torchvision` (and so timm) fails with "operator torchvision::nms does not exist". Only the declarations
of two operators are missing: they are made here if, and only if, the library does not load.
Its detection models need two operators that compute: `ensure_detection` puts ours in their place.
"""

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn.functional import embedding_bag

# A torch.library.Library removes its operators when it is garbage-collected.
_declared: list[torch.library.Library] = []


def ensure_torchvision() -> None:
    """Make `import torchvision` and `import timm` work; call it before the first of either.

    If torchvision's compiled library loads, nothing else happens and its own operators are used.
    A second call does nothing, and neither does the first if torchvision is not installed.
    """
    if _declared or hasattr(torch.ops.torchvision, "nms") or _load_compiled():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", non_maximum_suppression, "CPU")
    _declared.append(library)


def import_torchvision() -> Any:  # noqa: ANN401  (a module)
    """The torchvision module, without torch's compiler where nothing has imported that yet."""
    ensure_torchvision()
    return import_without_compiler("torchvision")


_COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def import_without_compiler(library: str) -> Any:  # noqa: ANN401  (a module)
    """Import torchvision or timm without torch's compiler, which takes a second, and which they hardly ever call.

    Both ask for it when they are imported: torchvision's `roi_align` for a function, timm's NaFlexViT for a decorator.
    Stand-ins that import it when they are called serve them. Versions that ask for more get the compiler itself.
    """
    if any(name in sys.modules for name in (library, *_COMPILER)):
        return importlib.import_module(library)
    sys.modules.update(_stand_ins())
    try:
        return importlib.import_module(library)
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == library]:
            del sys.modules[name]
    finally:
        for name in _COMPILER:
            del sys.modules[name]
    return importlib.import_module(library)


def _stand_ins() -> dict[str, types.ModuleType]:
    """What is asked of the compiler by modules that are only imported."""
    package, utils = (types.ModuleType(name) for name in _COMPILER)

    def disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:  # noqa: ANN401
        return _disable_dynamo(
            function, recursive
        )  # torch's own, which imports the compiler when it is called

    def is_compile_supported(device_type: Any) -> bool:  # noqa: ANN401
        return importlib.import_module(_COMPILER[1]).is_compile_supported(device_type)

    vars(package)["disable"] = disable
    vars(utils)["is_compile_supported"] = is_compile_supported
    return {package.__name__: package, utils.__name__: utils}


def _load_compiled() -> bool:
    """Load torchvision's library as torchvision itself would; True if nothing is left to be done."""
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


def ensure_detection() -> None:
    """Make torchvision's detection models run; call it before using one of them.

    If torchvision's compiled library loads, its own operators stay. Otherwise its functions fail (`nms`) or need a
    C++ compiler (`roi_align`), so the detection models get those of this file.
    """
    ensure_torchvision()
    from torchvision import extension
    from torchvision.models.detection import roi_heads
    from torchvision.ops import boxes, poolers

    if extension._has_ops():
        return
    places: tuple[tuple[Any, str, Any], ...] = (
        (boxes, "nms", non_maximum_suppression),
        (poolers, "roi_align", roi_align),
        (roi_heads, "roi_align", roi_align),
    )
    for module, name, ours in places:
        setattr(module, name, ours)


_BLOCK = 256
"""Boxes whose overlaps with all later ones are held at once: 4 MB for 4,000 boxes."""


def non_maximum_suppression(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], iou_threshold: float
) -> Int64[Tensor, " kept"]:
    """Positions of the boxes that are not overlapped, by more than the threshold, by a kept box of a higher score.

    Args:
        boxes: corners (x1, y1, x2, y2).
        scores: the higher of two overlapping boxes is kept; of equal ones the earlier.
        iou_threshold: intersection over union, in [0, 1].

    Returns:
        Positions by descending score.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order]
    alive = np.ones(len(order), np.bool_)
    for start in range(0, len(order), _BLOCK):
        rows = start + np.flatnonzero(alive[start : start + _BLOCK])
        candidates = ranked[torch.from_numpy(rows).to(ranked.device)]
        suppressed = _overlapping(candidates, ranked[start:], iou_threshold).cpu().numpy()
        for row, hits in zip(rows, suppressed, strict=True):
            if alive[row]:
                alive[row + 1 :] &= ~hits[row + 1 - start :]
    return order[torch.from_numpy(alive).to(order.device)]


def _overlapping(
    first: Float[Tensor, "n 4"], second: Float[Tensor, "m 4"], threshold: float
) -> Bool[Tensor, "n m"]:
    """Whether the intersection over union is above the threshold; NaN (two boxes without area) is not."""
    corner = torch.maximum(first[:, None, :2], second[None, :, :2])
    opposite = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    overlap = (opposite - corner).clamp(min=0).prod(dim=2)
    areas, others = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (first, second))
    return overlap / (areas[:, None] + others - overlap) > threshold


def roi_align(  # noqa: PLR0917  (torchvision calls it by position)
    input: Float[Tensor, "n c h w"],
    boxes: Float[Tensor, "k 5"] | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Float[Tensor, "k c p q"]:
    """Maps cropped at boxes and averaged into a grid of cells; differentiable with respect to the maps.

    Each cell is a weighted sum of the maps' pixels, which is what `embedding_bag` computes with the pixels as its
    table, so that no sample is stored.

    Args:
        input: feature maps.
        boxes: the image's number and the corners of each box, or a list of corners per image.
        output_size: number of cells in height and width.
        spatial_scale: pixels of the maps per pixel of the boxes.
        sampling_ratio: samples along each side of a cell; if not above 0, one per pixel of the map.
        aligned: whether pixel centers lie at .5.

    Source: He et al., Mask R-CNN, ICCV 2017 (arXiv 1703.06870), section 3; torchvision.ops.roi_align documents
    the arguments.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    rois = boxes if isinstance(boxes, Tensor) else _numbered(boxes)
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    sides = corners[:, 2:] - corners[:, :2]
    if not aligned:
        sides = sides.clamp(min=1)
    cells = torch.tensor((size[1], size[0]), device=rois.device, dtype=sides.dtype)
    counts = torch.full_like(sides, sampling_ratio) if sampling_ratio > 0 else (sides / cells).ceil()
    images, channels, height, width = input.shape
    table = input.permute(0, 2, 3, 1).reshape(images * height * width, channels)
    pooled = input.new_zeros(len(rois), size[0] * size[1], channels)
    groups, members = counts.clamp(min=1).long().unique(dim=0, return_inverse=True)
    for number, samples in enumerate(groups.tolist()):
        chosen = torch.nonzero(members == number)[:, 0]
        positions, weights = _samples(
            rois[chosen, 0].long(),
            corners[chosen],
            sides[chosen],
            size=size,
            samples=samples,
            shape=(height, width),
        )
        cut = embedding_bag(positions, table, mode="sum", per_sample_weights=weights.to(table.dtype))
        pooled = pooled.index_copy(0, chosen, cut.view(len(chosen), -1, channels))
    return pooled.transpose(1, 2).unflatten(2, size)


def _numbered(boxes: list[Tensor]) -> Float[Tensor, "k 5"]:
    return torch.cat(
        [torch.cat((torch.full_like(part[:, :1], number), part), 1) for number, part in enumerate(boxes)]
    )


def _samples(
    images: Int64[Tensor, " k"],
    corners: Float[Tensor, "k 4"],
    sides: Float[Tensor, "k 2"],
    *,
    size: tuple[int, int],
    samples: list[int],
    shape: tuple[int, int],
) -> tuple[Int64[Tensor, "cells s"], Float[Tensor, "cells s"]]:
    """Pixels that each cell of these boxes sums, and their weights; all have the same number of samples."""
    x, y = (
        _axis(corners[:, axis], sides[:, axis], cells, count, length)
        for axis, (cells, count, length) in enumerate(zip(size[::-1], samples, shape[::-1], strict=True))
    )
    height, width = shape
    first = (images * (height * width))[:, None, None, None, None]
    positions = first + y[0][:, :, None, :, None] * width + x[0][:, None, :, None, :]
    weights = y[1][:, :, None, :, None] * x[1][:, None, :, None, :]
    return positions.flatten(3).flatten(0, 2), weights.flatten(3).flatten(0, 2)


def _axis(
    starts: Float[Tensor, " k"], sides: Float[Tensor, " k"], cells: int, samples: int, length: int
) -> tuple[Int64[Tensor, "k cells s"], Float[Tensor, "k cells s"]]:
    """Pixels that a cell's samples read along one axis, two per sample, and their weights."""
    shares = (torch.arange(cells * samples, device=sides.device, dtype=sides.dtype) + 0.5) / (cells * samples)
    places = starts[:, None] + shares * sides[:, None]
    inside = ((places >= -1) & (places <= length)) / samples
    places = places.clamp(0, length - 1)
    lower = places.floor()
    upper_share = places - lower
    pixels = torch.stack((lower, (lower + 1).clamp(max=length - 1)), 2).long()
    weights = torch.stack(((1 - upper_share) * inside, upper_share * inside), 2)
    return pixels.unflatten(1, (cells, samples)).flatten(2), weights.unflatten(1, (cells, samples)).flatten(2)
