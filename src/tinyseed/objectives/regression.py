"""Regression: the student's vector is to be the teacher's."""

from typing import Literal

import torch

from tinyseed.objectives.similarity import check_inputs, common_dtype
from tinyseed.shapes import Embeddings, Scalar

RegressionLoss = Literal["l2", "cosine"]
"""The squared distance of unit vectors, 2 − 2 cos, or the distance of their directions, 1 − cos: half of it."""


def regression_loss(student: Embeddings, teacher: Embeddings, *, loss: RegressionLoss = "l2") -> Scalar:
    """Mean squared distance |z_S − z_T|² of the vectors of each image, or half of it.

    Computed from the difference, so that small losses keep their digits.

    Args:
        student: [n, d], unit rows; only this tensor gets a gradient.
        teacher: [n, d], unit rows of the same images.
        loss: "l2", from 0 to 4, or "cosine", 1 − z_S · z_T, from 0 to 2.

    Returns:
        float64 where an input is float64, else float32, also under autocast.

    Raises:
        ValueError: shapes do not fit, or vectors are not floating point.

    Source: Navaneet et al., SimReg, BMVC 2021 (arXiv 2201.05131), equation 1.

    >>> z = torch.tensor([[0.6, 0.8]])
    >>> regression_loss(z, z).item(), regression_loss(z, -z).item(), regression_loss(z, -z, loss="cosine").item()
    (0.0, 4.0, 2.0)
    """
    check_inputs("teacher", student=student, teacher=teacher, rows=teacher)
    dtype = common_dtype(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        squared = (student.to(dtype) - teacher.detach().to(dtype)).square().sum(1).mean()
        return squared if loss == "l2" else squared / 2
