"""LARS and AdamW against their formulas (arXiv 1708.03888, 1711.05101) in NumPy, clipping against its closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from tinyseed.engine.optim import build_optimizer, clip_gradients, restore_optimizer, scaled_lr
from tinyseed.methods.moco import MoCoSettings
from tinyseed.methods.simclr import SimCLRSettings
from tinyseed.methods.swav import SwAVSettings
from tinyseed.models.backbones import build_backbone

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


ADAMW = {"optimizer": "adamw", "lr": 0.005, "weight_decay": 0.1, "momentum": 0.8}


def random_gradients(module: nn.Module, steps: int) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        [generator.normal(size=tuple(value.shape)) for value in module.parameters()] for _ in range(steps)
    ]


def set_gradients(module: nn.Module, gradients: list[np.ndarray]) -> None:
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = torch.from_numpy(gradient).to(parameter.dtype)


def adamw_by_formula(value: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step, gradient in enumerate(gradients, start=1):
        first = 0.8 * first + 0.2 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        root = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        value = value - lr * (first / (1 - 0.8**step) / root + decay * value)
    return value


def test_adamw_takes_the_steps_of_its_formula_and_decays_weights_only():
    settings = MoCoSettings(**PLACE, **ADAMW)
    assert scaled_lr(settings, settings.lr) == 0.01  # linearly, as the others: 512 images
    module = network()
    before = [parameter.detach().numpy().copy() for parameter in module.parameters()]
    optimizer, gradients = build_optimizer(settings, module), random_gradients(module, 5)
    for of_step in gradients:
        set_gradients(module, of_step)
        optimizer.step()
    for place, (parameter, value) in enumerate(zip(module.parameters(), before, strict=True)):
        decay = 0.1 if value.ndim > 1 else 0.0
        expected = adamw_by_formula(value, [of_step[place] for of_step in gradients], 0.01, decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_adamw_is_torchs_and_keeps_its_state():
    ours, theirs = network().float(), network().float()
    settings = MoCoSettings(**PLACE, **ADAMW | {"weight_decay": 0.0})
    reference = AdamW(theirs.parameters(), lr=0.01, betas=(0.8, 0.999), weight_decay=0.0, fused=True)
    optimizer = build_optimizer(settings, ours)
    for step, gradients in enumerate(random_gradients(ours, 5)):
        for module, each in ((ours, optimizer), (theirs, reference)):
            set_gradients(module, gradients)
            each.step()
            each.zero_grad()
        if step == 2:  # a saved and restored state goes on
            state = optimizer.state_dict()
            optimizer = build_optimizer(settings, ours)
            restore_optimizer(optimizer, state)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_adamw_decays_what_timm_decays():
    from timm.optim import param_groups_weight_decay

    vit = build_backbone("test_vit", seed=0)
    groups = build_optimizer(MoCoSettings(**PLACE, **ADAMW), vit).param_groups
    wanted = param_groups_weight_decay(vit.network, 0.1, no_weight_decay_list=vit.network.no_weight_decay())
    ours = {group["weight_decay"]: set(group["params"]) for group in groups}
    assert ours == {group["weight_decay"]: set(group["params"]) for group in wanted}
    assert vit.network.pos_embed in ours[0.0]


@pytest.mark.parametrize("longest", [0.5, 1e6])
def test_gradients_are_scaled_to_the_norm_of_all_together(longest):
    module, (gradients,) = network(), random_gradients(network(), 1)
    set_gradients(module, [gradient.copy() for gradient in gradients])
    module[2].weight.grad = None  # as of frozen prototypes: counts as nothing
    clip_gradients(module, longest)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients[:-1]))
    assert 0.5 < norm < 1e6
    for parameter, gradient in zip(list(module.parameters())[:-1], gradients, strict=False):
        expected = gradient * min(1, longest / norm)
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-5 if longest < norm else 0)
