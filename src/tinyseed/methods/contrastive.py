"""Contrastive distillation: among other images' vectors the student finds the teacher's vector of its own image.

Source: the row "Binary contrastive loss" of Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), table 4; Tian et al.,
Contrastive Representation Distillation, ICLR 2020 (arXiv 1910.10699). With InfoNCE it is SEED with a teacher's
temperature of 0.
Differs: the other images are those of the latest steps, in a queue; CRD draws them from a memory of the whole data set,
and adds the same loss with the roles of teacher and student exchanged, which trains a head on the teacher, too. Its
code divides the exponentials by their mean in the first batch; its paper does not.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tinyseed.methods.base import Forward, MethodSpec, StepOutput
from tinyseed.methods.one_view import OneViewAndQueue, QueueSettings
from tinyseed.methods.parts import contrast, shapes
from tinyseed.settings.base import COUNTS, LARGEST, Range
from tinyseed.settings.train import TrainSettings


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(QueueSettings):
    """`tinyseed distill --method contrastive`."""

    loss: Literal["info-nce", "nce"] = "info-nce"
    """info-nce: the own image among all, by a softmax; nce: for each image a yes or no, as in CRD."""
    temperature: float = 0.2
    """Temperature of the similarities; CRD has 0.07."""
    nce_images: int | Literal["auto"] = "auto"
    """For nce: number of images M of the data set that negatives are drawn from, which sets where yes turns to no;
    auto: the training images."""
    projector: Literal["mlp", "mlp-bn", "mlp-bn-3", "linear"] = "mlp"
    """The student's head onto the teacher's dimension."""

    OWN: ClassVar = frozenset({"loss", "temperature", "nce_images", "projector"})
    RANGES: ClassVar = {"temperature": Range(0, LARGEST, above=True), "nce_images": COUNTS}

    def settled(self, images: int) -> TrainSettings:
        """The same settings with the queue's size and the number of images chosen."""
        given = images if self.nce_images == "auto" else self.nce_images
        return super().settled(images).replaced(nce_images=given)


class Contrastive(OneViewAndQueue):
    """The method: a student and a queue of the teacher's vectors."""

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """The teacher's vector of the same view against those of the queue."""
        del step
        settings = self.settings
        student, teacher = self.both(forward, views)
        given = (student, teacher, self.queue.rows())
        if settings.loss == "nce":
            loss = contrast.binary_nce(*given, images=settings.nce_images, temperature=settings.temperature)
        else:
            loss = contrast.info_nce(*given, temperature=settings.temperature)
        return StepOutput(loss, teacher)


CONTRASTIVE = MethodSpec(
    name="contrastive",
    label="Contrastive distillation",
    about="Contrastive: the student finds the teacher's vector of its image among those of others (InfoNCE, CRD)",
    settings=ContrastiveSettings,
    build=Contrastive,
    collapse_hint="A lower `lr`, a larger `queue_size` or another `temperature`",
    loss_note="The loss rises while the queue fills, and does not tell whether the features are good.",
)
