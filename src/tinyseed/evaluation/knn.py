"""`tinyseed evaluate knn`: k-NN with weighted or equal votes on frozen features."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tinyseed.errors import argument
from tinyseed.evaluation.base import EvaluationSpec, Measurement, Resume
from tinyseed.evaluation.parts import features, models, neighbors, splits
from tinyseed.settings.base import COUNTS, LARGEST, Range
from tinyseed.settings.evaluation import BankPrecision, ModelEvaluationSettings, RecipeSettings

USUAL_K = (10, 20, 200)

Weighting = Literal["weighted", "majority", "both"]


@dataclass(frozen=True, kw_only=True)
class KnnSettings(RecipeSettings, ModelEvaluationSettings):
    """Settings of `tinyseed evaluate knn`."""

    RANGES: ClassVar = {"k": COUNTS, "temperature": Range(0, LARGEST, above=True)}

    k: tuple[int, ...] = ()
    """Numbers of nearest neighbors that vote; by default 10, 20 and 200, as far as there are enough training images."""
    weighting: Weighting = "weighted"
    """Weight of a vote: weighted: exp(cosine similarity / `temperature`); majority: 1; both: report metrics of each."""
    temperature: float = 0.07
    """Temperature of weighted votes; the smaller, the more the nearest neighbors count."""
    bank_precision: BankPrecision = "auto"
    """Bits per number of the features that are kept; auto: 32, but 16 where that would take more than 4 GiB."""


def measure(
    encoder: "models.Encoder", splits: "splits.Splits", settings: KnnSettings, resume: Resume
) -> Measurement:
    """k-NN metrics in per cent, a row for each weighting and k.

    Raises:
        InputError: there are fewer images than neighbors.
    """
    measured = measure_knn(
        encoder,
        splits,
        k=settings.k,
        weighting=settings.weighting,
        temperature=settings.temperature,
        workers=settings.workers,
        precision=settings.bank_precision,
    )
    note = "leave-one-out: train and test are the same images, and no image votes for itself"
    return Measurement(measured.metrics, (note,) if splits.same else (), measured.unreadable)


def measure_knn(
    encoder: "models.Encoder",
    splits: "splits.Splits",
    *,
    k: tuple[int, ...] = (),
    weighting: Weighting = "weighted",
    temperature: float = 0.07,
    workers: int = 0,
    precision: BankPrecision = "auto",
) -> Measurement:
    """See `measure`; where both splits are the same images, no image votes for itself."""
    bank, tested = features.embed_splits(encoder, splits, workers=workers, precision=precision)
    voters = len(bank.labels) - splits.same
    usual = tuple(number for number in USUAL_K if number <= max(voters, USUAL_K[0]))
    rows = []
    for way in ("weighted", "majority") if weighting == "both" else (weighting,):
        with argument(train_labels="train_data", test_labels="test_data"):
            results = neighbors.knn(
                bank.features,
                bank.labels,
                tested.features.to(features.device()),
                tested.labels,
                k=k or usual,
                temperature=temperature,
                weighting=way,
                leave_one_out=splits.same,
            )
        rows += [
            {"k": result.k, "weighting": way, "top1": 100 * result.top1, "top5": 100 * result.top5}
            for result in results
        ]
    return Measurement(tuple(rows), unreadable=bank.unreadable + (0 if splits.same else tested.unreadable))


SPEC = EvaluationSpec(
    name="knn",
    settings=KnnSettings,
    measure=measure,
    about="Weighted k-NN on frozen features: how well do an image's labeled neighbors predict its class?",
    example="tinyseed evaluate knn --model runs/small --train-data train/ --test-data test/",
)
