from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from tinyseed.methods.base import Method, SingleProcess, StepOutput
from tinyseed.methods.swav import SwAV, SwAVSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.objectives.cluster import sinkhorn, swav_loss

REQUIRED = {"data": (), "out": Path(), "backbone": "resnet10t"}


def build(group=None, **settings) -> SwAV:
    backbone = build_backbone("resnet10t", seed=0)
    config = SwAVSettings(**REQUIRED, dim=16, prototypes=6, small_crops=3, **settings)
    encoder = Encoder(backbone, build_projector(config.projector, backbone.width, 16, 32, seed=1))
    return SwAV(config, encoder, steps_per_epoch=10, group=group)


def crops(n: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = (32, 32, 16, 16, 16)
    return tuple(torch.rand(n, 3, size, size, generator=generator) for size in sizes)


def unit(n: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_network_passes_each_resolution_once_and_keeps_the_order_of_crops():
    network = build().module.eval()
    passed: list[tuple[int, ...]] = []
    network.encoder.backbone.register_forward_pre_hook(
        lambda _, inputs: passed.append(tuple(inputs[0].shape))
    )
    with torch.no_grad():
        embeddings, scores = network(*crops())
    assert passed == [(8, 3, 32, 32), (12, 3, 16, 16)]
    with torch.no_grad():
        expected = torch.cat([network.encoder(crop) for crop in crops()])
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, expected @ network.prototypes.weight.T, rtol=1e-4, atol=1e-5)


def test_scores_stay_float32_under_autocast():
    network = build().module
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings, scores = network(*crops())
    assert embeddings.dtype == scores.dtype == torch.float32
    assert scores.equal(embeddings @ network.prototypes.weight.T)


def test_a_step_predicts_codes_from_the_other_crops():
    method = build()
    assert isinstance(method, Method)
    found = []

    def forward(*views):
        found.append(method.module(*views))
        return found[-1]

    output = method.step(forward, crops(), 0)
    scores = found[0][1].view(5, 4, 6)
    codes = torch.stack([sinkhorn(scores[0]), sinkhorn(scores[1])])
    assert output.loss.item() == swav_loss(scores, codes).item()
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.module.parameters())


def test_prototypes_are_unit_rows_frozen_at_first_to_the_bit():
    method = build(freeze_prototypes_epochs=2)
    weight = method.module.prototypes.weight
    optimizer = torch.optim.SGD(method.module.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    at_first = weight.detach().clone()
    for step in (0, 10, 19, 20):
        output = method.step(method.module, crops(), step)
        output.loss.backward()
        method.adjust_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        method.advance([output])
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(6))
        assert weight.equal(at_first) == (step < 20)


def test_the_queue_fills_from_its_epoch_and_is_used_once_full():
    method = build(queue_size=6, queue_start_epoch=1)
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert method.step(method.module, crops(), 9).rows is None
    output = method.step(method.module, crops(), 10)
    assert output.rows.shape == (8, 16)
    assert not output.rows.requires_grad
    alone = sinkhorn(scores)
    method.advance([output])
    assert [len(queue) for queue in method.queues] == [4, 4]
    assert torch.equal(method.queues[1].rows(), output.rows[4:])
    assert torch.equal(method._codes(0, scores), alone)  # not full yet
    method.advance([output])
    both = torch.cat([scores, method.queues[0].rows() @ method.module.prototypes.weight.T])
    codes = method._codes(0, scores)
    torch.testing.assert_close(codes, sinkhorn(both)[:4].detach())
    assert not torch.allclose(codes, alone, atol=1e-3)


class Second(SingleProcess):
    """The second of two processes, whose other half holds nothing."""

    rank, size = 1, 2


def test_each_process_takes_its_share_of_the_queue():
    shares = []
    for group in (SingleProcess(), Second()):
        method = build(group, queue_size=5)
        method.queues[0].push(unit(5, 3))
        asked = []
        method.group.gather = lambda tensor, asked=asked: asked.append(tensor) or tensor
        method._codes(0, torch.zeros(2, 6))
        shares.append((asked[0], method.queues[0].rows() @ method.module.prototypes.weight.T / 0.05))
    for (total, scores), taken in zip(shares, (slice(None), slice(1, None, 2)), strict=True):
        rows = torch.cat([torch.zeros(2, 6), scores[taken].detach()])
        torch.testing.assert_close(total, rows.logsumexp(0, keepdim=True))


def test_the_state_holds_the_queues():
    one, other = build(queue_size=3), build(queue_size=3)
    one.advance([StepOutput(torch.zeros(()), unit(4, 0))])
    other.load_state_dict(one.state_dict())
    for left, right in zip(one.queues, other.queues, strict=True):
        assert len(left) == 2
        assert torch.equal(left.rows(), right.rows())


@pytest.mark.parametrize(("size", "small"), [(224, 96), (32, 16)])
def test_views_are_large_then_small_crops(size, small):
    views = build().views(size)
    assert [view.size for view in views] == [size] * 2 + [small] * 3
    assert [view.settings.crop_scale for view in views] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 3
    assert {view.settings.brightness for view in views} == {0.8}
