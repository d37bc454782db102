"""SimCLR: two views of an image agree, against all other views of the batch.

Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020 (arXiv
2002.05709).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tinyseed.data.augmentation import SIMCLR_CROPS, View, color_distortion
from tinyseed.methods.base import Forward, Group, Method, MethodSpec, Setup, StepOutput
from tinyseed.methods.parts import contrast, encoder, render, shapes, torch
from tinyseed.settings.base import LARGEST, Range
from tinyseed.settings.train import OptimizerName, PretrainSettings, check_batch_has_pairs


@dataclass(frozen=True, kw_only=True)
class SimCLRSettings(PretrainSettings):
    """`tinyseed pretrain simclr`; the defaults are those of its ImageNet runs (2002.05709, section 2.1)."""

    optimizer: OptimizerName = "lars"
    lr: float = 0.3
    weight_decay: float = 1e-6
    temperature: float = 0.1
    """Temperature of the similarities: 0.1 in the published ImageNet runs, 0.5 suits CIFAR-10."""
    projector: Literal["mlp-bn", "mlp-bn-3", "mlp", "linear"] = "mlp-bn"
    """Head on the backbone: an MLP with batch norm, SimCLR v2's of three layers, one without batch norm, or linear."""
    color_strength: float = 1.0
    """Strength of the color distortion; 0.5 suits CIFAR-10."""

    RANGES: ClassVar = {
        "temperature": Range(0, LARGEST, above=True),
        "color_strength": Range(0, 2.5),
    }

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        check_batch_has_pairs(self)


class SimCLR(Method):
    """The method: a trained encoder, and no state beside it.

    Differs: with gradient accumulation the other views are those of a micro-batch, on all processes.
    """

    def __init__(
        self, settings: SimCLRSettings, trained: "encoder.Encoder", group: Group | None = None
    ) -> None:
        super().__init__(trained, trained, group)
        self.settings = settings

    def views(self, image_size: int) -> tuple[View, ...]:
        """Two, drawn alike."""
        settings = self.settings
        drawn = color_distortion(settings.color_strength, SIMCLR_CROPS, settings.blur_probability)
        return (View(drawn, image_size),) * 2

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """Both views in one forward pass, compared with the views of all processes (paper, algorithm 1)."""
        del step
        first, second = views
        expected = self.encoder.input
        own = forward(render.normalize(torch.cat([first, second]), expected.mean, expected.std))
        loss = contrast.nt_xent(
            own[: len(first)],
            own[len(first) :],
            self.group.gather_with_gradient(own),
            offset=self.group.rank * len(own),
            temperature=self.settings.temperature,
        )
        return StepOutput(loss)


def build(setup: Setup) -> SimCLR:
    """The method of a run."""
    return SimCLR(setup.settings, setup.encoder(setup.settings.dim), setup.group)


SIMCLR = MethodSpec(
    name="simclr",
    label="SimCLR",
    about="SimCLR: views agree against the rest of the batch; needs large batches",
    settings=SimCLRSettings,
    build=build,
    warmup_epochs=10,
    sync_batch_norm=True,
)
