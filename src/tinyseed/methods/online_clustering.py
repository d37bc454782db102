"""Online clustering: SwAV's loss with a teacher, whose vectors are divided among prototypes that the student predicts.

Source: the row "Online clustering" of Fang et al., SEED, ICLR 2021 (arXiv 2101.04731), table 4; codes and prototypes as
in Caron et al., SwAV, NeurIPS 2020 (arXiv 2006.09882), section 3.1.
Differs: SwAV predicts the code of one crop from another; here teacher and student look at the same view. Codes always
take the queue's rows into account, since a frozen teacher's do not age. Prototypes move from the first step on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tinyseed.methods.base import Forward, MethodSpec, Setup, StepOutput
from tinyseed.methods.one_view import OneViewAndQueue, QueueSettings
from tinyseed.methods.parts import cluster, functional, prototypes, shapes, torch
from tinyseed.settings.base import LARGEST, WIDTHS, Range


@dataclass(frozen=True, kw_only=True)
class OnlineClusteringSettings(QueueSettings):
    """`tinyseed distill --method online-clustering`; the defaults are SwAV's."""

    queue_size: int | Literal["auto"] = "auto"
    """Earlier images that take part in computing codes; auto: the largest power of two up to half the data set, at most
    4,096."""
    prototypes: int = 3000
    """Number of prototypes (clusters): about ten per expected class, and no more than batch and queue can fill."""
    temperature: float = 0.1
    """Temperature of the student's prediction."""
    epsilon: float = 0.05
    """Smoothness of the teacher's codes; smaller values assign each image to fewer prototypes."""
    sinkhorn_iterations: int = 3
    """Sinkhorn iterations, which make the codes use all prototypes equally."""
    projector: Literal["mlp", "mlp-bn", "mlp-bn-3", "linear"] = "mlp"
    """The student's head onto the teacher's dimension."""

    MOST_ROWS: ClassVar[int] = 4096  # about SwAV's 3,840: the scores of all rows are computed in each step
    OWN: ClassVar = frozenset({"prototypes", "temperature", "epsilon", "sinkhorn_iterations", "projector"})
    RANGES: ClassVar = {
        "prototypes": Range(2, WIDTHS.high),
        "temperature": Range(0, LARGEST, above=True),
        "epsilon": Range(0, LARGEST, above=True),
        "sinkhorn_iterations": Range(1, 1000),
    }


class OnlineClustering(OneViewAndQueue):
    """The method: a student, prototypes, and a queue of the teacher's vectors.

    Each process holds the queue's rows of all processes and takes a part of them for its codes, so that Sinkhorn's sums
    over processes count each row once.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.network = prototypes.PrototypeEncoder(self.encoder, self.settings.prototypes, self.settings.seed)
        self.module = self.network

    def step(self, forward: Forward, views: "tuple[shapes.Images, ...]", step: int) -> StepOutput:
        """The codes of the teacher's vectors, predicted from the student's vectors of the same view."""
        del step
        (_, scores), teacher = self.both(forward, views)
        terms = cluster.code_terms(scores, self._codes(teacher), temperature=self.settings.temperature)
        return StepOutput(terms.loss, teacher, terms.code_entropy)

    def _codes(self, teacher: "shapes.Embeddings") -> "torch.Tensor":
        """Codes [n, k] of this process' images, computed over the images of all processes and the queue."""
        part = self.queue.rows()[self.group.rank :: self.group.size]
        with torch.no_grad(), torch.autocast(teacher.device.type, enabled=False):
            scores = functional.linear(torch.cat([teacher, part]), self.network.prototypes.weight)
            codes = cluster.sinkhorn(
                scores,
                epsilon=self.settings.epsilon,
                iterations=self.settings.sinkhorn_iterations,
                gather=self.group.gather,
            )
        return codes[: len(teacher)]

    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Normalize the prototypes, then push the teacher's rows."""
        self.network.normalize_prototypes()
        super().advance(outputs)


ONLINE_CLUSTERING = MethodSpec(
    name="online-clustering",
    label="Online clustering",
    about="Online clustering: the student predicts the prototypes that the teacher's vectors are assigned to",
    settings=OnlineClusteringSettings,
    build=OnlineClustering,
    collapse_hint="A lower `epsilon`, fewer `prototypes` or a lower `lr`",
    loss_note="At least the entropy of the teacher's codes; it does not tell whether the features are good.",
)
