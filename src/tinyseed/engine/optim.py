"""The optimizer. Imports the run's settings, and what loads timm."""

from torch import nn
from torch.optim import SGD, Optimizer

from tinyseed.engine.config import PretrainSwAVConfig, TrainConfig
from tinyseed.torchvision_ops import ensure_torchvision

LR_BATCH = 256
"""The batch that `--lr` is meant for."""

TRUST_COEFFICIENT = 0.001
"""Length of a LARS step as a share of the parameter's own, at learning rate 1."""


def peak_lr(config: TrainConfig) -> float:
    """Linear scaling of the learning rate with the batch of all devices.

    Source: Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv 1706.02677).
    """
    return scaled_lr(config, config.lr)


def scaled_lr(config: TrainConfig, lr: float) -> float:
    """A learning rate for a batch of 256, scaled to the batch of a run."""
    return lr * config.batch_size / LR_BATCH


def build_optimizer(config: TrainConfig, module: nn.Module) -> Optimizer:
    """SGD with momentum and weight decay on every parameter (SEED, section 4.1), or LARS."""
    match config.optimizer:
        case "sgd":
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            # torch's fused step wants all momenta to begin at once; SwAV's prototypes begin later than the rest.
            return SGD(
                trained,
                lr=peak_lr(config),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                fused=not isinstance(config, PretrainSwAVConfig),
            )
        case "lars":
            return build_lars(config, module)


def build_lars(config: TrainConfig, module: nn.Module) -> Optimizer:
    """LARS, timm's: each parameter's step is scaled to 0.001 of its own length.

    With `lars_scope` "weights", biases and the scales and shifts of norms take SGD's steps without weight decay, as in
    SimCLR; with "all" they are adapted too, as in SwAV's code.

    Source: You et al., Large Batch Training of Convolutional Networks, 2017 (arXiv 1708.03888), algorithm 1; SimCLR
    (arXiv 2002.05709), section 2.1 and its published code.
    Differs: momentum gathers steps that the learning rate has not multiplied yet, as torch's SGD does.
    """
    ensure_torchvision()
    from timm.optim.lars import Lars

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    adapted = [parameter for parameter in trained if parameter.ndim > 1 or config.lars_scope == "all"]
    plain = [parameter for parameter in trained if parameter.ndim <= 1 and config.lars_scope == "weights"]
    groups = [
        {"params": adapted, "weight_decay": config.weight_decay, "always_adapt": True},
        {"params": plain, "weight_decay": 0.0, "always_adapt": False},
    ]
    return Lars(
        [group for group in groups if group["params"]],
        lr=peak_lr(config),
        momentum=config.momentum,  # pyright: ignore[reportArgumentType]  (timm's default is the whole number 0)
        trust_coeff=TRUST_COEFFICIENT,
    )
