"""SwAV: the cluster of one crop of an image is predicted from its other crops.

Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020
(arXiv 2006.09882), and the settings of its published runs.
Imports objectives, models and data; never another method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyseed.data.augmentation import View, color_distortion
from tinyseed.data.render import normalize
from tinyseed.methods.method import Alone, Forward, Group, StepOutput
from tinyseed.models.backbones import seeded
from tinyseed.models.encoder import Encoder
from tinyseed.objectives.cluster import sinkhorn, swav_loss
from tinyseed.objectives.queue import Queue

SMALLEST_CROP = 8
"""Side in pixels of the smallest crop that "auto" gives; it gives multiples of this."""

# A unit row that is normalised again may change in its last digit, and frozen prototypes would drift.
_UNIT_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class SwAVConfig:
    """SwAV's settings; defaults are those of its ImageNet runs with batches of 4,096."""

    large_crops: int = 2
    """Crops of `--image-size` pixels; their codes are what is predicted."""
    small_crops: int = 6
    """Further crops that the codes are predicted from."""
    small_crop_size: int | Literal["auto"] = "auto"
    """Side of the small crops in pixels; auto: 3/7 of `--image-size` (96 of 224) in steps of 8."""
    large_crop_scale: tuple[float, float] = (0.14, 1.0)
    """Least and greatest share of the image's area that a large crop covers."""
    small_crop_scale: tuple[float, float] = (0.05, 0.14)
    """Least and greatest share of the image's area that a small crop covers."""
    temperature: float = 0.1
    """Temperature of the prediction."""
    epsilon: float = 0.05
    """Smoothness of the codes; smaller gives each image fewer prototypes."""
    sinkhorn_iterations: int = 3
    """Rounds in which the codes are made to use all prototypes alike."""
    prototypes: int = 3000
    """Clusters; some ten for each class that may be there, and no more than images in batch and queue can fill."""
    dim: int = 128
    """Dimension of the embedding."""
    projector: Literal["mlp-bn", "mlp-bn-3", "mlp", "linear"] = "mlp-bn"
    """Head on the trunk: an MLP with batch norm, one of three layers, one without batch norm, or linear."""
    projector_hidden: int | Literal["auto"] = "auto"
    """Width of the MLP's hidden layers; auto: the trunk's width (2,048 for ResNet-50, as published)."""
    freeze_prototypes_epochs: int = 1
    """Epochs at the beginning in which the prototypes do not move."""
    queue_size: int = 0
    """Earlier images that take part in making codes, for each large crop; published: 3,840 for a batch of 256."""
    queue_start_epoch: int = 15
    """Epoch from which the queue is filled; it is used once it is full."""
    color_strength: float = 1.0
    """Strength of the colour distortion; 0.5 suits CIFAR-10."""
    blur_probability: float = 0.5
    """Share of the views that are blurred; 0 suits images of 32 px."""


def small_crop_size(config: SwAVConfig, image_size: int) -> int:
    """Side of the small crops in pixels: 3/7 of the large ones', in steps of 8, unless it is given.

    >>> [small_crop_size(SwAVConfig(), size) for size in (224, 160, 64, 32, 16)]
    [96, 72, 24, 16, 8]
    """
    if config.small_crop_size != "auto":
        return config.small_crop_size
    return max(SMALLEST_CROP, round(image_size * 3 / 7 / SMALLEST_CROP) * SMALLEST_CROP)


class SwAVNetwork(nn.Module):
    """What is trained: encoder and prototypes in one module, so that DDP sees one forward pass a step.

    Attributes:
        encoder: trunk and head.
        prototypes: from an embedding to its similarity with each prototype; weight [k, d], unit rows.
    """

    def __init__(self, encoder: Encoder, prototypes: int, seed: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        with seeded(seed):
            self.prototypes = nn.Linear(encoder.dim, prototypes, bias=False)
        self.normalise_prototypes()

    def forward(self, *crops: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [v·n, d] and scores [v·n, k] of v crops of n images, [n, c, h, w] each.

        Neighbouring crops of one size pass the trunk together, all of them the head. Scores are float32 at least.
        """
        groups = [torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: crop.shape[-1])]
        embeddings = self.encoder.head(torch.cat([self.encoder.backbone(group) for group in groups]))
        with torch.autocast(embeddings.device.type, enabled=False):
            return embeddings, self.prototypes(embeddings)

    @torch.no_grad()
    def normalise_prototypes(self) -> None:
        """Bring each prototype to unit length; one that has it stays as it is, to the bit."""
        weight = self.prototypes.weight
        length = weight.norm(dim=1, keepdim=True)
        weight.div_(torch.where((length - 1).abs() < _UNIT_TOLERANCE, 1.0, length))


class SwAV:
    """The method: encoder and prototypes, and for small batches a queue for each large crop.

    Each process holds the queues' rows of all processes and takes a share of them for its codes, so that Sinkhorn's
    sums over processes count each row once.

    Differs: with gradient accumulation codes are made from a micro-batch, on all processes. The published code fills
    each process' queue with its own images; the rows that all of them hold together are the same.
    """

    def __init__(
        self,
        config: SwAVConfig,
        encoder: Encoder,
        steps_per_epoch: int,
        seed: int = 0,
        group: Group | None = None,
    ) -> None:
        self.config = config
        self.encoder = encoder
        self.module = SwAVNetwork(encoder, config.prototypes, seed)
        self.steps_per_epoch = steps_per_epoch
        self.group = group or Alone()
        self.queues = [Queue(config.queue_size, config.dim) for _ in range(config.large_crops)]

    def views(self, image_size: int) -> tuple[View, ...]:
        """The large crops, then the small ones."""
        config = self.config
        large = color_distortion(config.color_strength, config.large_crop_scale, config.blur_probability)
        small = color_distortion(config.color_strength, config.small_crop_scale, config.blur_probability)
        size = small_crop_size(config, image_size)
        return (View(large, image_size),) * config.large_crops + (View(small, size),) * config.small_crops

    def step(self, forward: Forward, views: tuple[Tensor, ...], step: int) -> StepOutput:
        """Codes of the large crops, predicted from the other crops (paper, section 3.1)."""
        contract = self.encoder.input
        embeddings, scores = forward(*(normalize(view, contract.mean, contract.std) for view in views))
        scores = scores.view(len(views), len(views[0]), -1)
        codes = torch.stack([self._codes(crop, scores[crop]) for crop in range(self.config.large_crops)])
        loss = swav_loss(scores, codes, temperature=self.config.temperature)
        filling = self.config.queue_size > 0 and step >= self.config.queue_start_epoch * self.steps_per_epoch
        large = self.config.large_crops * len(views[0])
        return StepOutput(loss, embeddings[:large].detach() if filling else None)

    @torch.no_grad()
    def _codes(self, crop: int, scores: Tensor) -> Tensor:
        """Codes of a large crop of this process' images, made over the images and full queues of all processes."""
        queue, images = self.queues[crop], len(scores)
        if queue.size and len(queue) == queue.size:
            share = queue.rows()[self.group.rank :: self.group.size]
            with torch.autocast(scores.device.type, enabled=False):
                scores = torch.cat([scores.float(), functional.linear(share, self.module.prototypes.weight)])
        codes = sinkhorn(
            scores,
            epsilon=self.config.epsilon,
            iterations=self.config.sinkhorn_iterations,
            gather=self.group.gather,
        )
        return codes[:images]

    def adjust_gradients(self, step: int) -> None:
        """Freeze the prototypes in the first epochs: without a gradient no optimizer moves them (paper, appendix A)."""
        if step < self.config.freeze_prototypes_epochs * self.steps_per_epoch:
            self.module.prototypes.weight.grad = None

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Normalise the prototypes, then push the large crops' embeddings of all processes."""
        self.module.normalise_prototypes()
        for output in outputs:
            if output.rows is not None:
                for queue, rows in zip(self.queues, output.rows.chunk(len(self.queues)), strict=True):
                    queue.push(self.group.gather(rows))

    def to(self, device: torch.device) -> None:
        """Move the queues."""
        for queue in self.queues:
            queue.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """The queues' states."""
        return {
            f"queue.{crop}.{name}": value
            for crop, queue in enumerate(self.queues)
            for name, value in queue.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the queues."""
        for crop, queue in enumerate(self.queues):
            prefix = f"queue.{crop}."
            queue.load_state_dict(
                {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            )
