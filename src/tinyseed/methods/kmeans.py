"""k-means: the teacher's vectors of training images are divided into clusters, which the student learns as classes.

Source: the row "K-means" of Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), table 4; pseudo-labels as in Caron et al.,
DeepCluster, ECCV 2018 (arXiv 1807.05520).
Differs: the class of a view is the cluster that the teacher sees in that view, not one that its image has for good.
Clusters are found once, since the teacher is frozen, on as many images as they need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tinyseed.errors import InputError
from tinyseed.memory import require_memory
from tinyseed.methods.base import Forward, MethodSpec, Setup, StepOutput
from tinyseed.methods.one_view import OneView
from tinyseed.methods.parts import addressed, classified, clusters, functional, numpy, shapes, torch
from tinyseed.settings.base import COUNTS, WIDTHS, Range
from tinyseed.settings.train import DistillSettings, TrainSettings

IMAGES_PER_CLUSTER = 256
"""Images that suffice to place a cluster; more only take longer."""


@dataclass(frozen=True, kw_only=True)
class KMeansSettings(DistillSettings):
    """`tinyseed distill --method kmeans`."""

    clusters: int | Literal["auto"] = "auto"
    """Number of clusters; auto: one for ten training images, at most 1,000."""
    cluster_images: int | Literal["auto"] = "auto"
    """Largest number of training images on which the clusters are found, before the first step; auto: 256 per
    cluster."""

    projector: ClassVar[str] = "none"  # the classifier takes the place of a head
    OWN: ClassVar = frozenset({"clusters", "cluster_images"})
    RANGES: ClassVar = {"clusters": Range(2, WIDTHS.high), "cluster_images": COUNTS}

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the number of clusters, and of images to find them on, chosen.

        Raises:
            InputError: there are fewer images than clusters.
        """
        count = max(2, min(1000, images // 10)) if self.clusters == "auto" else self.clusters
        seen = IMAGES_PER_CLUSTER * count if self.cluster_images == "auto" else self.cluster_images
        if count > images:
            remedy = f"give at most {images}, the training images"
            raise InputError(self.clusters, remedy, argument="clusters")
        if count > seen:
            remedy = f"give at least as many as `clusters`, {count}"
            raise InputError(self.cluster_images, remedy, argument="cluster_images")
        return self.replaced(clusters=count, cluster_images=seen)


class KMeans(OneView):
    """The method: a student with a linear classifier, and the clusters' means.

    Attributes:
        means: [clusters, d], the means of the teacher's rows, as a buffer of a module; zeros before `prepare`.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        count, dim = self.settings.clusters, self._teacher.dim
        require_memory(4 * count * (dim + 3 * self.encoder.width), count, "clusters")
        self.module = classified.ClassifiedEncoder(self.encoder, count, self.settings.seed)
        self.means = torch.nn.Module()
        self.means.register_buffer("rows", torch.zeros(count, dim))

    def prepare(self, teacher_rows: "Callable[[int], shapes.Embeddings]") -> None:
        """Find the clusters; the first process' count for all.

        Raises:
            InputError: of the images that can be read there are fewer than clusters.
        """
        settings, means = self.settings, self._means
        rows = teacher_rows(settings.cluster_images).to(means.device)
        if len(rows) < settings.clusters:
            remedy = f"only {len(rows)} of the images can be read; give fewer"
            raise InputError(settings.clusters, remedy, argument="clusters")
        draws = addressed.uniforms(settings.seed, 0, numpy.arange(settings.clusters), "clusters", 1)[:, 0]
        found = clusters.kmeans(rows, torch.from_numpy(draws))
        means.copy_(self.group.gather(found)[: len(found)])

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """Cross-entropy between the student's classes and the cluster that the teacher's vector of the view is in."""
        del step
        scores, teacher = self.both(forward, views)
        with torch.autocast(scores.device.type, enabled=False):
            return StepOutput(functional.cross_entropy(scores, clusters.nearest(teacher, self._means)))

    @property
    def _means(self) -> "torch.Tensor":
        return self.means.get_buffer("rows")

    def state(self) -> Mapping[str, Any]:
        """The means."""
        return {"means.": self.means}


KMEANS = MethodSpec(
    name="kmeans",
    label="k-means",
    about="k-means: the student classifies the views into clusters of the teacher's vectors",
    settings=KMeansSettings,
    build=KMeans,
    collapse_hint="A lower `lr` or another number of `clusters`",
    loss_note="Cross-entropy of the clusters; that of guessing is the log of their number.",
)
