"""All evaluations. A new one is a file in `evaluation/`, and a line here."""

from tinyseed.detection.evaluate import SPEC as DETECT
from tinyseed.errors import InputError
from tinyseed.evaluation.base import EvaluationSpec
from tinyseed.evaluation.knn import SPEC as KNN
from tinyseed.evaluation.linear import SPEC as LINEAR
from tinyseed.evaluation.retention import SPEC as RETENTION
from tinyseed.evaluation.semi import SPEC as SEMI
from tinyseed.evaluation.transfer import SPEC as TRANSFER

EVALUATIONS: tuple[EvaluationSpec, ...] = (
    KNN,
    LINEAR,
    SEMI,
    TRANSFER,
    RETENTION,
    DETECT,
)


def find_evaluation(name: str) -> EvaluationSpec:
    """An evaluation by its name.

    Raises:
        InputError: an unknown name.
    """
    for spec in EVALUATIONS:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in EVALUATIONS)
    raise InputError(name, f"give one of {known}", argument="evaluation")
