"""The optimizer. Imports the run's settings."""

from torch import nn
from torch.optim import SGD, Optimizer

from tinyseed.engine.config import TrainConfig

LR_BATCH = 256
"""The batch that `--lr` is meant for."""


def peak_lr(config: TrainConfig) -> float:
    """Linear scaling of the learning rate with the batch of all devices.

    Source: Goyal et al., Accurate, Large Minibatch SGD, 2017 (arXiv 1706.02677).
    """
    return config.lr * config.batch_size / LR_BATCH


def build_optimizer(config: TrainConfig, module: nn.Module) -> Optimizer:
    """SGD with momentum and weight decay on every parameter (SEED, section 4.1)."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return SGD(
        trained, lr=peak_lr(config), momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
