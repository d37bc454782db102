import subprocess
import sys

import numpy as np
import pytest
import torch

from tinyseed.torchvision_ops import (
    ensure_detection,
    ensure_torchvision,
    non_maximum_suppression,
    roi_align,
)


def brute_force(boxes, scores, threshold):
    """All pairs in plain Python; a box stays unless a kept one before it overlaps too much."""

    def iou(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        inner = max(width, 0) * max(height, 0)
        outer = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
        return inner / outer if outer else 0.0

    kept = []
    for candidate in sorted(range(len(boxes)), key=lambda index: -scores[index]):
        if all(iou(boxes[candidate], boxes[other]) <= threshold for other in kept):
            kept.append(candidate)
    return kept


@pytest.mark.parametrize("count", [0, 1, 2, 60, 600])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression_equals_all_pairs(count, threshold):
    random = np.random.default_rng(count)
    corners = random.uniform(0, 20, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 10, (count, 2))], axis=1)
    scores = random.integers(0, 8, count) / 8  # equal scores among them
    kept = non_maximum_suppression(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert kept.tolist() == brute_force(boxes.tolist(), scores.tolist(), threshold)


def test_boxes_of_no_area_suppress_nothing():
    boxes = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert non_maximum_suppression(boxes, torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]


def test_the_operator_answers_after_repeated_calls():
    ensure_torchvision()
    ensure_torchvision()
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    assert torch.ops.torchvision.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == [1, 2]


def run_alone(code):
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_timm_and_detection_import_without_a_warning():
    done = run_alone(
        "from tinyseed.torchvision_ops import ensure_torchvision\n"
        "ensure_torchvision()\n"
        "import timm, torchvision.models.detection\n"
        "ensure_torchvision()\n"
        "print(timm.create_model('resnet18', num_classes=0).num_features)"
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "512", "")


def test_nothing_is_declared_where_the_compiled_library_loads():
    """The library is stood in for by a load that declares the operators, as its constructors do."""
    done = run_alone(
        "import torch\n"
        "from tinyseed import torchvision_ops\n"
        "stand_in = torch.library.Library('torchvision', 'DEF')\n"
        "declare = lambda path: stand_in.define('nms(Tensor dets, Tensor scores, float limit) -> Tensor')\n"
        "torch.ops.load_library = declare\n"
        "torchvision_ops.ensure_torchvision()\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
        "print(torchvision_ops._declared)"
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def align_by_hand(maps, rois, size, scale, ratio, aligned):
    """The definition in float64 loops: the mean of a cell's bilinear samples, 0 beyond a pixel outside."""
    _, channels, height, width = maps.shape
    pooled = np.zeros((len(rois), channels, *size))

    def at(image, y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return np.zeros(channels)
        y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
        top, left = int(y), int(x)
        down, right = min(top + 1, height - 1), min(left + 1, width - 1)
        v, u = y - top, x - left
        upper = (1 - u) * maps[image, :, top, left] + u * maps[image, :, top, right]
        lower = (1 - u) * maps[image, :, down, left] + u * maps[image, :, down, right]
        return (1 - v) * upper + v * lower

    for number, (image, *corners) in enumerate(rois):
        x1, y1, x2, y2 = np.array(corners) * scale - (0.5 if aligned else 0)
        wide, high = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        down, across = (
            (ratio, ratio) if ratio > 0 else (int(np.ceil(high / size[0])), int(np.ceil(wide / size[1])))
        )
        for row in range(size[0]):
            for column in range(size[1]):
                samples = [
                    at(
                        int(image),
                        y1 + high / size[0] * (row + (i + 0.5) / down),
                        x1 + wide / size[1] * (column + (j + 0.5) / across),
                    )
                    for i in range(down)
                    for j in range(across)
                ]
                pooled[number, :, row, column] = np.mean(samples, axis=0)
    return pooled


@pytest.mark.parametrize("ratio", [2, -1])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_is_its_definition(ratio, aligned):
    random = np.random.default_rng(0)
    maps = random.normal(size=(2, 3, 9, 12))
    corners = random.uniform(-10, 110, (12, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0.5, 60, (12, 2))], axis=1)
    rois = np.concatenate([random.integers(0, 2, (12, 1)), boxes], axis=1)
    made = roi_align(torch.from_numpy(maps), torch.from_numpy(rois), (4, 3), 0.125, ratio, aligned)
    np.testing.assert_allclose(
        made.numpy(), align_by_hand(maps, rois, (4, 3), 0.125, ratio, aligned), atol=1e-12
    )


def test_roi_align_has_a_gradient_and_takes_lists():
    maps = torch.randn(2, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 1.0, 1.0, 14.0, 9.0], [1.0, 0.0, 3.0, 19.0, 19.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda given: roi_align(given, rois, 2, 0.25, 2), maps)
    listed = roi_align(maps, [rois[:1, 1:], rois[1:, 1:]], 2, 0.25, 2)
    torch.testing.assert_close(listed, roi_align(maps, rois, 2, 0.25, 2))
    assert roi_align(maps, rois[:0], 2, 0.25, 2).shape == (0, 2, 2, 2)


def test_detection_uses_ours_only_where_the_compiled_library_does_not_load():
    ensure_detection()
    from torchvision import extension
    from torchvision.ops import batched_nms, boxes, poolers

    assert (boxes.nms is non_maximum_suppression) == (not extension._has_ops())
    assert (poolers.roi_align is roi_align) == (not extension._has_ops())
    corners = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [0.0, 0.0, 2.0, 1.9]])
    kept = batched_nms(corners, torch.tensor([0.5, 0.9, 0.1]), torch.tensor([0, 0, 1]), 0.5)
    assert kept.tolist() == [1, 2]
