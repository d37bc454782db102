"""LARS against its closed formula (arXiv 1708.03888, algorithm 1), in NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from tinyseed.engine.optim import build_optimizer, scaled_lr
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.simclr import SimCLRSettings
from tinyseed.methods.swav import SwAVSettings

PLACE = {"data": ("d",), "out": Path("o"), "backbone": "b", "batch_size": 512}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False))
    nn.init.uniform_(layers[1].weight, 0.5, 1.5)
    return layers.double()


def steps_by_formula(
    value: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float, *, adapted: bool
) -> np.ndarray:
    momentum = np.zeros_like(value)
    for gradient in gradients:
        scale, decayed = 1.0, gradient
        if adapted:
            length, slope = np.linalg.norm(value), np.linalg.norm(gradient)
            scale = 0.001 * length / (slope + decay * length) if length > 0 and slope > 0 else 1.0
            decayed = gradient + decay * value
        momentum = 0.9 * momentum + scale * decayed
        value = value - lr * momentum
    return value


@pytest.mark.parametrize("config", [SimCLRSettings, SwAVSettings])
def test_lars_takes_the_steps_of_its_formula(config):
    settings = config(**PLACE, weight_decay=0.1)
    assert scaled_lr(settings, settings.lr) == 0.6
    module = network()
    before = [parameter.detach().numpy().copy() for parameter in module.parameters()]
    optimizer = build_optimizer(settings, module)
    generator = np.random.default_rng(0)
    gradients = [[generator.normal(size=value.shape) for value in before] for _ in range(3)]
    for of_step in gradients:
        for parameter, gradient in zip(module.parameters(), of_step, strict=True):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    for place, (parameter, value) in enumerate(zip(module.parameters(), before, strict=True)):
        adapted = value.ndim > 1 or config is SwAVSettings
        expected = steps_by_formula(
            value, [of_step[place] for of_step in gradients], 0.6, 0.1, adapted=adapted
        )
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-9)


def test_sgd_is_torchs_on_every_parameter():
    optimizer = build_optimizer(MoCoSettings(**PLACE), network())
    assert isinstance(optimizer, SGD)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.06, 0.9, 1e-4)
    assert len(group["params"]) == 5


@pytest.mark.parametrize("fused", [True, False])
def test_momentum_takes_the_steps_of_torchs_sgd_and_keeps_its_state(fused):
    ours, theirs = network().float(), network().float()
    settings = MoCoSettings(**PLACE, weight_decay=0.1)
    values = {"lr": scaled_lr(settings, settings.lr), "momentum": 0.9, "weight_decay": 0.1, "fused": fused}
    pairs = [
        (ours, build_optimizer(settings, ours, fused=fused)),
        (theirs, SGD(theirs.parameters(), **values)),
    ]
    for step in range(4):
        for module, optimizer in pairs:
            module(torch.full((6, 5), 0.1) * torch.arange(1, 7)[:, None]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if step == 1:  # a saved and restored state goes on
            state = pairs[0][1].state_dict()
            pairs[0] = ours, build_optimizer(settings, ours, fused=fused)
            pairs[0][1].load_state_dict(state)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None
