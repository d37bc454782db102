"""MoCo, v1 and v2: two views of an image agree against a queue of keys from a slowly moving encoder.

Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020 (arXiv 1911.05722);
Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020 (arXiv 2003.04297).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinyseed.data.augmentation import View, published
from tinyseed.methods.base import Forward, Group, Method, MethodSpec, Setup, StepOutput
from tinyseed.methods.momentum_contrast import MomentumContrast
from tinyseed.methods.parts import encoder, queues, render, shapes, torch
from tinyseed.settings.base import LARGEST, QUEUE_SIZES, Range
from tinyseed.settings.train import PretrainSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class MoCoSettings(PretrainSettings):
    """`tinyseed pretrain moco-v2`; the defaults are those of v2's paper."""

    queue_size: int | Literal["auto"] = "auto"
    """Keys in the queue; auto: the largest power of two up to half the data set, at most 65,536."""
    temperature: float = 0.2
    """Temperature of the similarities."""
    encoder_momentum: float = 0.999
    """Momentum of the key encoder, the moving average of the trained one."""
    projector: Literal["mlp", "linear"] = "mlp"
    """Head on the backbone: the MLP of MoCo v2, or the linear layer of v1."""
    augmentation: Literal["v2", "v1"] = "v2"
    """Color jitter: that of v2 (80 % of the views, hue up to 0.1), or of v1 (all views, hue up to 0.4)."""

    RANGES: ClassVar = {
        "queue_size": QUEUE_SIZES,
        "temperature": Range(0, LARGEST, above=True),
        "encoder_momentum": Range(0, 1),
    }

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the queue's size chosen for this number of images."""
        size = queues.auto_queue_size(images) if self.queue_size == "auto" else self.queue_size
        return self.replaced(queue_size=size)


@dataclass(frozen=True, kw_only=True)
class MoCoV1Settings(MoCoSettings):
    """`tinyseed pretrain moco-v1`: the same method with the first paper's settings (1911.05722, sections 3.3 and 4)."""

    temperature: float = 0.07
    projector: Literal["mlp", "linear"] = "linear"
    augmentation: Literal["v2", "v1"] = "v1"
    blur_probability: float = 0.0
    schedule: Literal["cosine", "step", "cosine-epoch"] = "step"


class MoCo(Method):
    """The method: a trained encoder for the queries, its moving average for the keys, and the queue."""

    def __init__(
        self,
        settings: MoCoSettings,
        trained: "encoder.Encoder",
        queue: "queues.Queue",
        seed: int = 0,
        group: Group | None = None,
    ) -> None:
        super().__init__(trained, trained, group)
        self.settings = settings
        self.contrast = MomentumContrast(
            trained,
            queue,
            momentum=settings.encoder_momentum,
            temperature=settings.temperature,
            seed=seed,
            group=group,
        )

    def views(self, image_size: int) -> tuple[View, ...]:
        """Two, drawn alike.

        Differs: v1's code converts views to grayscale before the jitter; here that always comes after it.
        """
        settings = self.settings
        drawn = published(f"moco-{settings.augmentation}", settings.blur_probability)
        return (View(drawn, image_size),) * 2

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """Queries from the first view, keys from the second (1911.05722, algorithm 1)."""
        expected = self.encoder.input
        first, second = (render.normalize(view, expected.mean, expected.std) for view in views)
        queries = forward(first)
        keys = self.contrast.keys(second, step)
        return StepOutput(self.contrast.loss(queries, keys), keys)

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Move the key encoder towards the trained one, then push the keys of all processes."""
        self.contrast.follow()
        for output in outputs:
            assert output.rows is not None
            self.contrast.push(output.rows)

    def state(self) -> Mapping[str, Any]:
        """Key encoder and queue."""
        return self.contrast.state()

    def to(self, device: "torch.device") -> None:
        """Move key encoder and queue to a device."""
        super().to(device)
        self.contrast.channels_last()


def build(setup: Setup) -> MoCo:
    """The method of a run."""
    settings = setup.settings
    queue = setup.queue(settings.dim)
    return MoCo(settings, setup.encoder(settings.dim), queue, settings.seed, setup.group)


_HINT = "A lower `lr`, a larger `queue_size` or another temperature"
_LOSS = "The loss rises while the queue fills, and does not tell whether the features are good."

MOCO_V1 = MethodSpec(
    name="moco-v1",
    label="MoCo-v1",
    about="MoCo: views agree against a queue of keys from a momentum encoder; linear head",
    settings=MoCoV1Settings,
    build=build,
    collapse_hint=_HINT,
    loss_note=_LOSS,
)
MOCO_V2 = MethodSpec(
    name="moco-v2",
    label="MoCo-v2",
    about="MoCo with an MLP head, stronger augmentation and a cosine schedule; good on small machines",
    settings=MoCoSettings,
    build=build,
    collapse_hint=_HINT,
    loss_note=_LOSS,
)
