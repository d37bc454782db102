import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tinyseed.methods.base import Method, StepOutput
from tinyseed.methods.moco import MoCo, MoCoSettings
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.objectives.queue import Queue

REQUIRED = {"data": (), "out": Path(), "backbone": "resnet10t"}


def build(group=None, momentum: float = 0.9) -> MoCo:
    backbone = build_backbone("resnet10t", seed=0)
    encoder = Encoder(backbone, build_projector("mlp", backbone.width, 16, None, seed=1))
    return MoCo(
        MoCoSettings(**REQUIRED, encoder_momentum=momentum, dim=16),
        encoder,
        Queue(8, 16),
        seed=5,
        group=group,
    )


class Lockstep:
    """Threads that stand for processes: each waits until all have laid their tensor down."""

    def __init__(self, rank: int, slots: list, barrier: threading.Barrier) -> None:
        self.rank, self.slots, self.barrier = rank, slots, barrier
        self.size = len(slots)

    def gather(self, tensor: Tensor) -> Tensor:
        self.slots[self.rank] = tensor
        self.barrier.wait(30)
        joined = torch.cat(list(self.slots))
        self.barrier.wait(30)
        return joined

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        raise NotImplementedError


def keys_of_two_processes(images: Tensor, *, train: bool) -> tuple[Tensor, list[MoCo]]:
    slots, barrier = [None, None], threading.Barrier(2)
    methods = [build(Lockstep(rank, slots, barrier)) for rank in range(2)]
    found: list = [None, None]

    def work(rank: int) -> None:
        methods[rank].contrast.key_encoder.train(train)
        found[rank] = methods[rank].contrast.keys(images[rank * 4 : rank * 4 + 4], 7)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return torch.cat(found), methods


def test_the_momentum_encoder_moves_by_its_formula_and_gets_no_gradient():
    method = build()
    assert isinstance(method, Method)
    before = [parameter.clone() for parameter in method.contrast.key_encoder.parameters()]
    with torch.no_grad():
        for parameter in method.module.parameters():
            parameter.add_(1.0)
    rows = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    method.advance([StepOutput(torch.zeros(()), rows)])
    for old, new, query in zip(
        before, method.contrast.key_encoder.parameters(), method.module.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * query, rtol=1e-5, atol=1e-6)
        assert not new.requires_grad
    assert torch.equal(method.contrast.queue.rows(), rows)


def test_a_step_is_info_nce_of_two_views():
    method = build()
    method.contrast.queue.push(torch.nn.functional.normalize(torch.randn(6, 16), dim=1))
    views = (torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32))
    queries: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        queries.append(method.module(images))
        return queries[0]

    output = method.step(forward, views, step=0)
    positive = (queries[0] * output.rows).sum(1, keepdim=True)
    scores = torch.cat([positive, queries[0] @ method.contrast.queue.rows().T], 1) / 0.2
    expected = torch.nn.functional.cross_entropy(scores, torch.zeros(4, dtype=torch.long))
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.module.parameters())


def test_shuffling_over_processes_gives_each_image_its_own_key():
    """Without batch statistics the grouping is of no consequence: the keys are those of a plain forward pass."""
    images = torch.rand(8, 3, 32, 32)
    keys, methods = keys_of_two_processes(images, train=False)
    torch.testing.assert_close(keys, methods[0].contrast.key_encoder(images), rtol=1e-4, atol=1e-5)


def test_shuffling_takes_keys_from_other_groups_than_the_queries():
    images = torch.rand(8, 3, 32, 32)
    keys, _ = keys_of_two_processes(images, train=True)
    plain = build()
    with torch.no_grad():
        unshuffled = torch.cat(
            [plain.contrast.key_encoder(images[:4]), plain.contrast.key_encoder(images[4:])]
        )
    assert not torch.allclose(keys, unshuffled, atol=1e-4)


def test_the_state_holds_key_encoder_and_queue():
    one, other = build(), build()
    with torch.no_grad():
        for parameter in one.contrast.key_encoder.parameters():
            parameter.mul_(0.5)
    one.contrast.queue.push(torch.nn.functional.normalize(torch.randn(3, 16), dim=1))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.contrast.queue.rows(), one.contrast.queue.rows())
    for left, right in zip(
        one.contrast.key_encoder.parameters(), other.contrast.key_encoder.parameters(), strict=True
    ):
        assert torch.equal(left, right)


def test_views_of_both_versions():
    second = build().views(64)[0].settings
    assert (second.jitter_probability, second.hue, second.blur_probability) == (0.8, 0.1, 0.5)
    method = build()
    method.settings = MoCoSettings(**REQUIRED, augmentation="v1", blur_probability=0.0)
    one, other = method.views(64)
    assert one == other
    first = one.settings
    assert (first.jitter_probability, first.hue, first.blur_probability) == (1.0, 0.4, 0.0)
    assert (first.crop_scale, first.gray_probability, first.brightness) == ((0.2, 1.0), 0.2, 0.4)
