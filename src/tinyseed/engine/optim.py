"""The optimizer of a run."""

from collections.abc import Iterator
from fnmatch import fnmatch
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer

from tinyseed.settings.train import TrainSettings
from tinyseed.torchvision_ops import ensure_torchvision

LR_BATCH = 256
"""Batch size that learning rates are given for."""

TRUST_COEFFICIENT = 0.001
"""Length of a LARS step as a fraction of the parameter's own, at learning rate 1."""


SECOND_BETA, EPSILON = 0.999, 1e-8
"""Of AdamW: the decay of the squared gradients' average, and what is added to its root. Torch's and the paper's."""


class Undecorated(Optimizer):
    """torch's optimizers without their decorators for torch.compile: the first call of one takes a second to import."""

    add_param_group = unwrap(Optimizer.add_param_group)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)
    zero_grad = unwrap(Optimizer.zero_grad)


class Momentum(Undecorated, SGD):
    """torch's SGD."""

    step = torch.no_grad()(unwrap(SGD.step))


class Adaptive(Undecorated, AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(unwrap(AdamW.step))


def scaled_lr(settings: TrainSettings, lr: float) -> float:
    """A learning rate for a batch of 256, scaled linearly to the batch of a run over all devices.

    For AdamW too: published recipes scale its learning rate linearly up to batches of 4,096 (MAE, arXiv 2111.06377,
    appendix A; DINO, arXiv 2104.14294, section 3.2; MoCo v3, arXiv 2104.02057, section 4). Malladi et al. (arXiv
    2205.10330) derive a square root; it differs little from that near a batch of 256.

    Source: Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv 1706.02677).
    """
    return lr * settings.batch_size / LR_BATCH


def build_optimizer(settings: TrainSettings, module: nn.Module, *, fused: bool = True) -> Optimizer:
    """SGD with momentum and weight decay on every parameter (SEED, section 4.1), LARS, or AdamW.

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
        case "adamw":
            return _adamw(settings, module, lr)


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


def _adamw(settings: TrainSettings, module: nn.Module, lr: float) -> Optimizer:
    """AdamW, torch's, in its fused step; `momentum` is the first beta.

    Weights decay as LARS' do by default: no biases, scales and shifts of norms (they have one axis); nor do parameters
    that a network of timm's exempts (`no_weight_decay`: position embeddings, class tokens).

    Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019 (arXiv 1711.05101), algorithm 2; the
    decay is multiplied by the learning rate, as in torch.
    """
    exempt = set(_exempt_from_decay(module))
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, value in module.named_parameters():
        if value.requires_grad:
            decays = value.ndim > 1 and not any(fnmatch(name, pattern) for pattern in exempt)
            (decayed if decays else plain).append(value)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return Adaptive(
        [group for group in groups if group["params"]],
        lr=lr,
        betas=(settings.momentum, SECOND_BETA),
        eps=EPSILON,
        fused=True,
    )


def _exempt_from_decay(module: nn.Module) -> Iterator[str]:
    """Names, or patterns of names, of parameters that networks of timm's want not to decay."""
    for prefix, part in module.named_modules():
        names: Any = getattr(part, "no_weight_decay", set)
        for name in names():
            yield f"{prefix}.{name}" if prefix else name


def clip_gradients(module: nn.Module, longest: float) -> None:
    """Scale a module's gradients to this L2 norm, of all together, where they are longer; nothing waits for a GPU.

    Args:
        module: what is trained; its gradients are those of the whole batch, averaged over micro-batches and processes.
        longest: the norm, above 0.

    Source: Pascanu et al., On the difficulty of training recurrent neural networks, ICML 2013 (arXiv 1211.5063),
    algorithm 1.
    """
    clip_grad_norm_(module.parameters(), longest, foreach=True)


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
