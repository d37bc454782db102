"""The optimizer of a run."""

from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from tinyseed.settings.train import TrainSettings
from tinyseed.torchvision_ops import ensure_torchvision

LR_BATCH = 256
"""Batch size that learning rates are given for."""

TRUST_COEFFICIENT = 0.001
"""Length of a LARS step as a fraction of the parameter's own, at learning rate 1."""


class Momentum(SGD):
    """torch's SGD without its decorators for torch.compile: the first call of one takes a second to import."""

    add_param_group = unwrap(SGD.add_param_group)
    state_dict = unwrap(SGD.state_dict)
    load_state_dict = unwrap(SGD.load_state_dict)
    zero_grad = unwrap(SGD.zero_grad)
    step = torch.no_grad()(unwrap(SGD.step))


def scaled_lr(settings: TrainSettings, lr: float) -> float:
    """A learning rate for a batch of 256, scaled linearly to the batch of a run over all devices.

    Source: Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv 1706.02677).
    """
    return lr * settings.batch_size / LR_BATCH


def build_optimizer(settings: TrainSettings, module: nn.Module, *, fused: bool = True) -> Optimizer:
    """SGD with momentum and weight decay on every parameter (SEED, section 4.1), or LARS.

    Args:
        settings: optimizer, learning rate, momentum, weight decay and the scope of LARS.
        module: what is trained.
        fused: whether SGD takes torch's fused step.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    lr = scaled_lr(settings, settings.lr)
    match settings.optimizer:
        case "sgd":
            return Momentum(
                trained,
                lr=lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                fused=fused,
            )
        case "lars":
            return _lars(settings, trained, lr)


def _lars(settings: TrainSettings, trained: list[nn.Parameter], lr: float) -> Optimizer:
    """LARS, timm's: each parameter's step is scaled to 0.001 of its own length.

    With `lars_scope` "weights", biases and the scales and shifts of norms take SGD's steps without weight decay, as in
    SimCLR; with "all" they are adapted too, as in SwAV's code.

    Source: You et al., Large Batch Training of Convolutional Networks, 2017 (arXiv 1708.03888), algorithm 1; SimCLR
    (arXiv 2002.05709), section 2.1 and its published code.
    Differs: momentum accumulates steps that the learning rate has not multiplied yet, as torch's SGD and SwAV's LARC
    do, but not SimCLR's code; nor does that divide by ‖g‖ + λ‖w‖, but by ‖g + λw‖.
    """
    ensure_torchvision()
    from timm.optim.lars import Lars

    everything = settings.lars_scope == "all"
    adapted = [parameter for parameter in trained if parameter.ndim > 1 or everything]
    plain = [parameter for parameter in trained if parameter.ndim <= 1 and not everything]
    groups = [
        {"params": adapted, "weight_decay": settings.weight_decay, "always_adapt": True},
        {"params": plain, "weight_decay": 0.0, "always_adapt": False},
    ]
    return Lars(
        [group for group in groups if group["params"]],
        lr=lr,
        momentum=settings.momentum,  # pyright: ignore[reportArgumentType]  (timm's default is the integer 0)
        trust_coeff=TRUST_COEFFICIENT,
    )


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what an optimizer remembers of its parameters; its settings stay those of the run.

    Raises:
        ValueError: the shapes are not those of the parameters; torch itself compares only their number.
    """
    settings = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"its optimizer has a {name} of another shape")
