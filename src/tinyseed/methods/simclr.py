"""SimCLR: two views of an image agree, against all other views of the batch.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020 (arXiv
2002.05709).
Imports objectives, models and data; never another method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tinyseed.data.augmentation import View, color_distortion
from tinyseed.data.render import normalize
from tinyseed.methods.method import Alone, Forward, Group, StepOutput
from tinyseed.models.encoder import Encoder
from tinyseed.objectives.contrast import nt_xent
from tinyseed.shapes import Images

CROP_SCALE = (0.08, 1.0)


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """SimCLR's settings; defaults are those of its ImageNet runs."""

    temperature: float = 0.1
    """Temperature of the similarities; 0.1 is that of the published ImageNet runs, 0.5 suits CIFAR-10."""
    dim: int = 128
    """Dimension of the embedding."""
    projector: Literal["mlp-bn", "mlp-bn-3", "mlp", "linear"] = "mlp-bn"
    """Head on the trunk: an MLP with batch norm, SimCLR v2's of three layers, one without batch norm, or linear."""
    projector_hidden: int | Literal["auto"] = "auto"
    """Width of the MLP's hidden layers; auto: the trunk's width."""
    color_strength: float = 1.0
    """Strength of the colour distortion; 0.5 suits CIFAR-10."""
    blur_probability: float = 0.5
    """Share of the views that are blurred; 0 suits images of 32 px."""


class SimCLR:
    """The method: a trained encoder, and no state beside it.

    Differs: with gradient accumulation the other views are those of a micro-batch, on all processes.
    """

    def __init__(self, config: SimCLRConfig, encoder: Encoder, group: Group | None = None) -> None:
        self.config = config
        self.module = self.encoder = encoder
        self.group = group or Alone()

    def views(self, image_size: int) -> tuple[View, ...]:
        """Two, drawn alike."""
        config = self.config
        return (
            View(color_distortion(config.color_strength, CROP_SCALE, config.blur_probability), image_size),
        ) * 2

    def step(self, forward: Forward, views: tuple[Images, ...], step: int) -> StepOutput:
        """Both views in one forward pass, compared with the views of all processes (paper, algorithm 1)."""
        del step
        first, second = views
        contract = self.encoder.input
        own = forward(normalize(torch.cat([first, second]), contract.mean, contract.std))
        loss = nt_xent(
            own[: len(first)],
            own[len(first) :],
            self.group.gather_with_gradient(own),
            offset=self.group.rank * len(own),
            temperature=self.config.temperature,
        )
        return StepOutput(loss)

    def adjust_gradients(self, step: int) -> None:
        """Nothing to change."""

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Nothing to change."""

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""
