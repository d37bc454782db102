"""SwAV: the cluster of one crop of an image is predicted from its other crops.

Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020
(arXiv 2006.09882), and the settings of its published runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinyseed.data.augmentation import SWAV_CROPS, View, color_distortion
from tinyseed.memory import require_memory
from tinyseed.methods.base import Forward, Group, Method, MethodSpec, Setup, StepOutput
from tinyseed.methods.crops import SMALL_CROPS, require_small_crops, small_crop_size
from tinyseed.methods.parts import cluster, encoder, functional, prototypes, queues, render, torch
from tinyseed.settings.base import IMAGE_SIDES, LARGEST, MOST_EPOCHS, QUEUE_SIZES, WIDTHS, Range
from tinyseed.settings.train import (
    OptimizerName,
    PretrainSettings,
    TrainSettings,
    check_batch_has_pairs,
    check_scale,
)


@dataclass(frozen=True, kw_only=True)
class SwAVSettings(PretrainSettings):
    """`tinyseed pretrain swav`; the defaults are those of its ImageNet runs with batches of 4,096.

    Source: 2006.09882, appendix A (learning rate 4.8 to 0.0048).
    """

    optimizer: OptimizerName = "lars"
    lr: float = 0.3
    final_lr: float = 0.0003
    weight_decay: float = 1e-6
    lars_scope: Literal["weights", "all"] = "all"
    large_crops: int = 2
    """Number of crops at the full image size; their codes are what is predicted."""
    small_crops: int = 6
    """Number of further crops that the codes are predicted from."""
    small_crop_size: int | Literal["auto"] = "auto"
    """Side length of the small crops in pixels; auto: 3/7 of the image size (96 of 224) in steps of 8."""
    large_crop_scale: tuple[float, float] = SWAV_CROPS
    """Smallest and largest fraction of the image's area that a large crop covers."""
    small_crop_scale: tuple[float, float] = (0.05, 0.14)
    """Smallest and largest fraction of the image's area that a small crop covers."""
    temperature: float = 0.1
    """Temperature of the prediction."""
    epsilon: float = 0.05
    """Smoothness of the codes; smaller values assign each image to fewer prototypes."""
    sinkhorn_iterations: int = 3
    """Sinkhorn iterations, which make the codes use all prototypes equally."""
    prototypes: int = 3000
    """Number of prototypes (clusters): about ten per expected class, and no more than batch and queue can fill."""
    projector: Literal["mlp-bn", "mlp-bn-3", "mlp", "linear"] = "mlp-bn"
    """Head on the backbone: an MLP with batch norm, one of three layers, one without batch norm, or a linear layer."""
    freeze_prototypes_epochs: int = 1
    """Number of epochs at the beginning in which the prototypes stay fixed."""
    queue_size: int = 0
    """Earlier images that take part in computing codes, for each large crop; published: 3,840 for a batch of 256."""
    queue_start_epoch: int = 15
    """Epoch from which the queue is filled; it is used once it is full."""
    color_strength: float = 1.0
    """Strength of the color distortion; 0.5 suits CIFAR-10."""

    RANGES: ClassVar = {
        "large_crops": Range(2, 64),
        "small_crops": SMALL_CROPS,
        "small_crop_size": IMAGE_SIDES,
        "temperature": Range(0, LARGEST, above=True),
        "epsilon": Range(0, LARGEST, above=True),
        "sinkhorn_iterations": Range(1, 1000),
        "prototypes": Range(2, WIDTHS.high),
        "freeze_prototypes_epochs": Range(0, MOST_EPOCHS.high),
        "queue_size": QUEUE_SIZES,
        "queue_start_epoch": Range(0, MOST_EPOCHS.high),
        "color_strength": Range(0, 2.5),
    }

    def check(self) -> None:
        """Refuse settings that cannot be meant; see `Settings.check`."""
        super().check()
        check_batch_has_pairs(self)
        for name in ("large_crop_scale", "small_crop_scale"):
            check_scale(name, getattr(self, name))

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the size of the small crops chosen."""
        del images
        return self.replaced(small_crop_size=small_crop_size(self.small_crop_size, self.image_size))


class SwAV(Method):
    """The method: encoder and prototypes, and for small batches a queue for each large crop.

    Each process holds the queues' rows of all processes and takes a part of them for its codes, so that Sinkhorn's
    sums over processes count each row once.

    Differs: with gradient accumulation codes are computed from a micro-batch, on all processes. The published code
    fills each process' queue with its own images; the rows that all of them hold together are the same. It divides
    colors by standard deviations of 0.228, 0.224 and 0.225, where ImageNet's first is 0.229. Its freezing of the
    prototypes is given in steps: 313 or 5,005, which is an epoch of ImageNet.
    """

    def __init__(
        self,
        settings: SwAVSettings,
        trained: "encoder.Encoder",
        steps_per_epoch: int,
        seed: int = 0,
        group: Group | None = None,
    ) -> None:
        self.network = prototypes.PrototypeEncoder(trained, settings.prototypes, seed)
        super().__init__(self.network, trained, group)
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.queues = [queues.Queue(settings.queue_size, settings.dim) for _ in range(settings.large_crops)]

    def views(self, image_size: int) -> tuple[View, ...]:
        """The large crops, then the small ones."""
        settings = self.settings
        scales = (settings.large_crop_scale, settings.small_crop_scale)
        large, small = (
            color_distortion(settings.color_strength, scale, settings.blur_probability) for scale in scales
        )
        size = small_crop_size(settings.small_crop_size, image_size)
        return (View(large, image_size),) * settings.large_crops + (View(small, size),) * settings.small_crops

    def step(self, forward: Forward, views: "tuple[torch.Tensor, ...]", step: int) -> StepOutput:
        """Codes of the large crops, predicted from the other crops (paper, section 3.1)."""
        settings, expected = self.settings, self.encoder.input
        embeddings, scores = forward(*(render.normalize(view, expected.mean, expected.std) for view in views))
        scores = scores.view(len(views), len(views[0]), -1)
        codes = torch.stack([self._codes(crop, scores[crop]) for crop in range(settings.large_crops)])
        loss = cluster.swav_loss(scores, codes, temperature=settings.temperature)
        filling = settings.queue_size > 0 and step >= settings.queue_start_epoch * self.steps_per_epoch
        large = settings.large_crops * len(views[0])
        return StepOutput(loss, embeddings[:large].detach() if filling else None)

    def _codes(self, crop: int, scores: "torch.Tensor") -> "torch.Tensor":
        """Codes of a large crop of this process' images, computed over the images and full queues of all processes."""
        queue, images = self.queues[crop], len(scores)
        with torch.no_grad():
            if queue.size and len(queue) == queue.size:
                part = queue.rows()[self.group.rank :: self.group.size]
                with torch.autocast(scores.device.type, enabled=False):
                    earlier = functional.linear(part, self.network.prototypes.weight)
                    scores = torch.cat([scores.float(), earlier])
            codes = cluster.sinkhorn(
                scores,
                epsilon=self.settings.epsilon,
                iterations=self.settings.sinkhorn_iterations,
                gather=self.group.gather,
            )
        return codes[:images]

    def adjust_gradients(self, step: int) -> None:
        """Freeze the prototypes in the first epochs: without a gradient no optimizer moves them (paper, appendix A)."""
        if step < self.settings.freeze_prototypes_epochs * self.steps_per_epoch:
            self.network.prototypes.weight.grad = None

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Normalize the prototypes, then push the large crops' embeddings of all processes."""
        self.network.normalize_prototypes()
        for output in outputs:
            if output.rows is not None:
                for queue, rows in zip(self.queues, output.rows.chunk(len(self.queues)), strict=True):
                    queue.push(self.group.gather(rows))

    def state(self) -> Mapping[str, Any]:
        """The queue."""
        return {f"queue.{crop}.": queue for crop, queue in enumerate(self.queues)}


def build(setup: Setup) -> SwAV:
    """The method of a run.

    Raises:
        InputError: the network cannot take the small crops.
    """
    settings = setup.settings
    trained = setup.encoder(settings.dim)
    if settings.small_crops:
        require_small_crops(trained, settings.small_crop_size, settings.NETWORK)
    require_memory(
        4 * settings.large_crops * settings.queue_size * settings.dim, settings.queue_size, "queue_size"
    )
    return SwAV(settings, trained, setup.steps_per_epoch, settings.seed, setup.group)


SWAV = MethodSpec(
    name="swav",
    label="SwAV",
    about="SwAV: the cluster of one crop is predicted from the other crops",
    settings=SwAVSettings,
    build=build,
    warmup_epochs=10,
    fused_sgd=False,  # the prototypes begin to move later than the rest
    sync_batch_norm=True,
    # Source: "Common issues" in the README of its published code.
    collapse_hint="A lower `epsilon`, fewer `prototypes`, a lower `lr` or softer views",
)
