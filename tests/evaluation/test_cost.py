"""What a network costs, against counts by hand."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from tinyseed.evaluation import cost as module
from tinyseed.evaluation.cost import cost, multiply_adds
from tinyseed.models.onnx_export import ONNX_PACKAGES, onnx_file


def test_multiply_adds_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert multiply_adds(network, torch.zeros(1, 3, 8, 8)) == 8 * 16 * 27 + 8 * 16 * 5


def test_a_resnet18_at_224_has_its_published_cost():
    from tinyseed.evaluation.run import open_model

    encoder = open_model("random:torchvision/resnet18", "auto")
    network = encoder.backbone.eval()
    published = (
        1.814e9 - 512 * 1000
    )  # torchvision's table, less the classifier that the backbone does without
    assert multiply_adds(network, torch.zeros(1, 3, 224, 224)) == pytest.approx(published, rel=2e-3)


def test_parameters_size_and_time(small, monkeypatch):
    monkeypatch.setattr(module, "has_onnx", lambda: False)
    found = cost(small, runs=3)
    assert found.parameters == sum(value.numel() for value in small.backbone.parameters())
    assert found.file_mb == pytest.approx(4 * found.parameters / 1e6, rel=0.02)
    assert found.latency_ms > 0
    assert found.latency_by == "PyTorch, 1 thread"


@pytest.mark.slow
def test_the_onnx_file_gives_the_same_features(small):
    for name in ONNX_PACKAGES:
        pytest.importorskip(name)
    runtime = importlib.import_module("onnxruntime")
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    content = onnx_file(small.backbone, image)
    assert len(content) > 4 * sum(value.numel() for value in small.backbone.parameters())  # weights included
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.no_grad():
        expected = small.backbone(image).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())
    assert cost(small, runs=2).latency_by == "ONNX Runtime, 1 thread"
