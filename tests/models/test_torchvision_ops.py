import subprocess
import sys

import numpy as np
import pytest
import torch

from tinyseed.models.torchvision_ops import ensure_torchvision, non_maximum_suppression


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


@pytest.mark.parametrize("count", [0, 1, 2, 60])
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
        "from tinyseed.models.torchvision_ops import ensure_torchvision\n"
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
        "from tinyseed.models import torchvision_ops\n"
        "stand_in = torch.library.Library('torchvision', 'DEF')\n"
        "declare = lambda path: stand_in.define('nms(Tensor dets, Tensor scores, float limit) -> Tensor')\n"
        "torch.ops.load_library = declare\n"
        "torchvision_ops.ensure_torchvision()\n"
        "assert hasattr(torch.ops.torchvision, 'nms')\n"
        "print(torchvision_ops._declared)"
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
