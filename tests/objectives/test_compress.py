"""CompRess's loss against NumPy in float64, closed forms and SEED's look-ups."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config
from torch.nn.functional import normalize

from tinyseed.objectives import streaming
from tinyseed.objectives.compress import compress_terms


def unit(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(rows, dim=1).to(dtype)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def reference(student, teacher, student_rows, teacher_rows, student_temperature, teacher_temperature):
    """Loss, entropy and gradient from the two score matrices."""
    z, t, s_rows, t_rows = (
        given.double().numpy() for given in (student, teacher, student_rows, teacher_rows)
    )
    log_p = log_softmax(t @ t_rows.T / teacher_temperature)
    log_q = log_softmax(z @ s_rows.T / student_temperature)
    p = np.exp(log_p)
    gradient = (np.exp(log_q) - p) @ s_rows / (student_temperature * len(z))
    return (p * (log_p - log_q)).sum(1).mean(), -(p * log_p).sum(1).mean(), gradient


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 20),
    k=st.integers(1, 700),
    dims=st.tuples(st.integers(2, 48), st.integers(2, 48)),
    temperatures=st.tuples(st.sampled_from([0.04, 0.2]), st.sampled_from([0.01, 0.04, 1.0])),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
def test_against_score_matrices(n, k, dims, temperatures, dtype, seed):
    s, t = dims
    inputs = [unit(m, d, seed + i, dtype) for i, (m, d) in enumerate(((n, s), (n, t), (k, s), (k, t)))]
    names = ("student_temperature", "teacher_temperature")
    student = inputs[0].requires_grad_()
    terms = compress_terms(student, *inputs[1:], **dict(zip(names, temperatures, strict=True)))
    terms.loss.backward()
    loss, entropy, gradient = reference(student.detach(), *inputs[1:], *temperatures)
    bound = 1e-4 if dtype == torch.float32 else 1e-9
    assert terms.loss.item() == pytest.approx(loss, rel=bound, abs=bound)
    assert terms.target_entropy.item() == pytest.approx(entropy, rel=bound, abs=bound)
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=10 * bound, atol=bound)


def test_blocks_of_rows_give_what_all_rows_give(monkeypatch):
    inputs = [unit(m, d, i) for i, (m, d) in enumerate(((5, 6), (5, 9), (300, 6), (300, 9)))]
    whole = compress_terms(*inputs)
    monkeypatch.setitem(streaming.SCORE_BYTES, "cpu", 1)  # blocks of 64, the fewest
    parts = compress_terms(*inputs)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.target_entropy, whole.target_entropy, rtol=1e-12, atol=0)


def test_gradcheck():
    inputs = [unit(m, d, i) for i, (m, d) in enumerate(((3, 5), (3, 4), (17, 5), (17, 4)))]
    assert torch.autograd.gradcheck(lambda z: compress_terms(z, *inputs[1:]).loss, inputs[0].requires_grad_())


def test_a_student_that_is_the_teacher_has_no_loss_and_no_gradient():
    rows, images = unit(40, 8, 0), unit(6, 8, 1).requires_grad_()
    terms = compress_terms(images, images.detach(), rows, rows)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(0, abs=1e-12)
    assert images.grad.abs().max() < 1e-12


def test_equal_rows_give_a_uniform_target():
    rows = unit(1, 4, 0).expand(8, 4)
    terms = compress_terms(unit(2, 4, 1), unit(2, 4, 2), rows, rows)
    assert terms.loss.item() == pytest.approx(0, abs=1e-12)
    assert terms.target_entropy.item() == pytest.approx(math.log(8))


def test_an_empty_queue_gives_exactly_zero():
    student = unit(2, 4, 1).requires_grad_()
    terms = compress_terms(student, unit(2, 6, 2), torch.zeros(0, 4), torch.zeros(0, 6))
    terms.loss.backward()
    assert terms.loss.item() == terms.target_entropy.item() == 0
    assert student.grad.count_nonzero() == 0


def test_what_does_not_fit_is_refused():
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="student: 2 images and 5 rows: give as many as of the teacher"):
            compress_terms(unit(2, 4, 0), unit(2, 6, 1), unit(5, 4, 2), unit(4, 6, 3))
    finally:
        jaxtyping_config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match="teacher_temperature: 0"):
        compress_terms(unit(2, 4, 0), unit(2, 6, 1), unit(5, 4, 2), unit(5, 6, 3), teacher_temperature=0)
