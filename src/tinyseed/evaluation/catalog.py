"""All evaluations. To add one, write its file and add its `SPEC` here."""

from collections.abc import Sequence

from tinyseed.errors import InputError
from tinyseed.evaluation import knn, linear, retention, semi, transfer
from tinyseed.evaluation.base import EvaluationSpec

EVALUATIONS: tuple[EvaluationSpec, ...] = (knn.SPEC, linear.SPEC, semi.SPEC, transfer.SPEC, retention.SPEC)


def find_evaluation(name: str, evaluations: Sequence[EvaluationSpec] = EVALUATIONS) -> EvaluationSpec:
    """The evaluation of this name.

    Raises:
        InputError: there is none.
    """
    for spec in evaluations:
        if spec.name == name:
            return spec
    names = ", ".join(spec.name for spec in evaluations)
    raise InputError(name, f"give {names}", argument="evaluation")
