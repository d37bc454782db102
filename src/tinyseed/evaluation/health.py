"""Label-free measures of whether a network learns: pure functions of feature matrices."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tinyseed.evaluation.search import nearest
from tinyseed.shapes import Features


def neighbor_agreement(
    teacher: Float[Tensor, "n f_teacher"], student: Float[Tensor, "n f_student"], neighbors: int = 10
) -> float:
    """Share of the teacher's nearest neighbors that the student has too: mean of |N_T ∩ N_S| / neighbors.

    Neighbors are by cosine similarity among the same images, the image itself left out. Unrelated features
    agree by chance on `neighbors` / (n - 1). If n - 1 is at most `neighbors`, all others are taken
    and the result is 1 whatever the features are: it is informative only if n is many times `neighbors`.

    Args:
        teacher: features of n images, any scale.
        student: features of the same images in the same order, of any width.
        neighbors: how many are compared.

    Returns:
        0 to 1; NaN for fewer than three images or features that are not finite.
    """
    images = len(teacher)
    if images < 3 or not (bool(teacher.isfinite().all()) and bool(student.isfinite().all())):
        return math.nan
    count = min(neighbors, images - 1)
    of_teacher = nearest(teacher, teacher, count, exclude_self=True).positions.cpu()
    of_student = nearest(student, student, count, exclude_self=True).positions.cpu()
    shared = sum(int((of_student == column[:, None]).sum()) for column in of_teacher.unbind(1))
    return shared / (images * count)


def effective_rank(features: Features) -> float:
    """How many directions the features use: exp of the entropy of their normalized singular values.

    1 where all images get the same features (collapse), at most min(n - 1, f). What float32 rounding alone
    could leave (singular values up to eps · ‖features‖) counts as nothing.

    Args:
        features: one row per image, any scale.

    Returns:
        1 to min(n - 1, f); NaN without images or with features that are not finite.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007, section 2; Garrido et al., "RankMe: Assessing
        the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank", ICML 2023.
    Differs: features are centered first. Both papers leave the mean in; after a ReLU it is the largest
        direction by far and hides the others.
    """
    matrix = features.detach().cpu().double()
    if len(matrix) == 0 or not bool(matrix.isfinite().all()):
        return math.nan
    centered = matrix - matrix.mean(0)
    wide = centered.shape[0] < centered.shape[1]
    # The eigenvalues of the Gram matrix are the squared singular values, and cheaper than an SVD.
    gram = centered @ centered.T if wide else centered.T @ centered
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    singular = singular[singular > torch.finfo(torch.float32).eps * matrix.norm()]
    if len(singular) == 0:
        return 1.0
    share = singular / singular.sum()
    return float(torch.exp(-(share * share.log()).sum()))
