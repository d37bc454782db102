"""`tinyseed evaluate centroid`: classification by the nearest class mean of frozen features."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseed.evaluation.base import EvaluationSpec, Measurement, Resume
from tinyseed.lazy import lazy
from tinyseed.settings.evaluation import ModelEvaluationSettings

if TYPE_CHECKING:
    import torch

    from tinyseed.evaluation import features, metrics, splits
    from tinyseed.models import encoder as models
else:
    torch, features, metrics, splits, models = lazy(
        "torch",
        "tinyseed.evaluation.features",
        "tinyseed.evaluation.metrics",
        "tinyseed.evaluation.splits",
        "tinyseed.models.encoder",
    )


@dataclass(frozen=True, kw_only=True)
class CentroidSettings(ModelEvaluationSettings):
    """Settings of `tinyseed evaluate centroid`."""

    center: bool = False
    """Subtract the mean of the training features first."""


def measure(
    encoder: "models.Encoder", splits: "splits.Splits", settings: CentroidSettings, resume: Resume
) -> Measurement:
    """Metrics in per cent, as one row."""
    train, test = features.embed_splits(encoder, splits, workers=settings.workers)
    mean = train.features.mean(0) if settings.center else 0
    rows = torch.nn.functional.normalize(train.features - mean, dim=1)
    classes = range(len(splits.classes))
    centroids = torch.stack([rows[train.labels == number].mean(0) for number in classes])
    scores = (test.features - mean) @ centroids.T
    return Measurement((metrics.class_metrics(scores, test.labels),), unreadable=test.unreadable)


SPEC = EvaluationSpec(
    name="centroid",
    settings=CentroidSettings,
    measure=measure,
    about="Nearest class mean: how well do the means of frozen features separate the classes?",
    example="tinyseed evaluate centroid --model runs/small --train-data train/ --test-data test/",
)
