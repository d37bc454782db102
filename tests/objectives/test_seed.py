"""SEED's loss against the direct formula: NumPy in float64, closed forms, and torch's own float32."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import config as jaxtyping_config
from numpy.typing import NDArray
from torch.nn.functional import normalize

from tinyseed.objectives.contrast import info_nce
from tinyseed.objectives.queue import Queue
from tinyseed.objectives.seed import seed_loss, seed_terms, target_entropy


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """The bounds of float32 hold for sums over two threads, also in a test process that has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Reference(NamedTuple):
    loss: float
    gradient: NDArray[np.float64]
    entropy: NDArray[np.float64]


def log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(1, keepdims=True)
    # log(1 + rest) with the rest summed apart, so that the reference keeps the digits of tiny losses too.
    top = shifted.argmax(1)
    rest = np.exp(shifted)
    rest[np.arange(len(rest)), top] = 0
    return shifted - np.log1p(rest.sum(1, keepdims=True))


def reference(student, teacher, rows, student_temperature: float, teacher_temperature: float) -> Reference:
    s, t, r = (tensor.detach().double().numpy() for tensor in (student, teacher, rows))
    everything = np.concatenate([t[:, None], np.broadcast_to(r, (len(t), *r.shape))], 1)
    log_s = log_softmax(np.einsum("nd,njd->nj", s, everything) / student_temperature)
    log_t = log_softmax(np.einsum("nd,njd->nj", t, everything) / teacher_temperature)
    p_s, p_t = np.exp(log_s), np.exp(log_t)
    # Weights of softmaxes sum to 1: told from the own row, what cancels is left out (1e-12 has to be shown).
    difference = np.einsum("nj,njd->nd", p_s - p_t, everything - t[:, None])
    loss = -(p_t * log_s).sum(1).mean()
    return Reference(float(loss), difference / (student_temperature * len(s)), -(p_t * log_t).sum(1))


def scene(
    n: int, k: int, d: int, dtype=torch.float32, *, spread: float = 1.0, noise: float = 0.3, seed: int = 0
):
    """Unit vectors around five centers, `spread` apart from them; the student is a noisy teacher."""
    generator = torch.Generator().manual_seed(seed + 7 * n + 11 * k + 13 * d)
    centers = normalize(torch.randn(5, d, generator=generator, dtype=torch.float64), dim=1)

    def around(m: int):
        own = torch.randint(0, 5, (m,), generator=generator)
        return normalize(
            centers[own] + spread * torch.randn(m, d, generator=generator, dtype=torch.float64) / d**0.5,
            dim=1,
        )

    teacher, rows = around(n), around(k)
    student = normalize(
        teacher + noise * torch.randn(n, d, generator=generator, dtype=torch.float64) / d**0.5, dim=1
    )
    return student.to(dtype), teacher.to(dtype), rows.to(dtype)


def direct_torch(student, teacher, rows, student_temperature: float, teacher_temperature: float):
    """What anyone would write: own score beside the queue's, two matrices, softmax, log-softmax."""
    own_s, own_t = ((z * teacher).sum(1, keepdim=True) for z in (student, teacher))
    log_s = (torch.cat([own_s, student @ rows.T], 1) / student_temperature).log_softmax(1)
    p_t = (torch.cat([own_t, teacher @ rows.T], 1) / teacher_temperature).softmax(1)
    return -(p_t * log_s).sum(1).mean()


def with_gradient(function, student, *arguments, **keywords):
    student = student.clone().requires_grad_()
    loss = function(student, *arguments, **keywords)
    loss.backward()
    return loss.item(), student.grad.double().numpy()


def errors(result, expected: Reference) -> tuple[float, float]:
    """Relative errors of loss and gradient."""
    loss, gradient = result
    scale = np.linalg.norm(expected.gradient)
    return abs(loss - expected.loss) / expected.loss, float(
        np.linalg.norm(gradient - expected.gradient) / scale
    )


GRID = [(n, k, d) for n in (1, 3, 32) for k in (1, 2, 7, 513, 2051) for d in (8, 33, 128)]


@pytest.mark.parametrize(("n", "k", "d"), GRID)
@pytest.mark.parametrize("teacher_temperature", [0.01, 0.1])
def test_float32_against_numpy(n, k, d, teacher_temperature):
    student, teacher, rows = scene(n, k, d)
    result = with_gradient(seed_loss, student, teacher, rows, teacher_temperature=teacher_temperature)
    loss_error, gradient_error = errors(result, reference(student, teacher, rows, 0.2, teacher_temperature))
    assert loss_error <= 1e-6
    assert gradient_error <= 1e-5


@pytest.mark.parametrize(("n", "k", "d"), GRID)
@pytest.mark.parametrize("teacher_temperature", [0.01, 0.1])
def test_float64_against_numpy(n, k, d, teacher_temperature):
    student, teacher, rows = scene(n, k, d, torch.float64)
    result = with_gradient(seed_loss, student, teacher, rows, teacher_temperature=teacher_temperature)
    loss_error, gradient_error = errors(result, reference(student, teacher, rows, 0.2, teacher_temperature))
    assert loss_error <= 1e-12
    assert gradient_error <= 1e-12


@settings(deadline=None, max_examples=100)
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 900),
    d=st.integers(8, 96),
    spread=st.sampled_from([0.5, 1.0, 3.0]),
    noise=st.sampled_from([0.0, 0.3, 3.0]),
    temperatures=st.sampled_from([(0.2, 0.01), (0.2, 0.04), (0.07, 0.02), (1.0, 0.1)]),
    seed=st.integers(0, 10_000),
)
def test_float32_against_numpy_anywhere(n, k, d, spread, noise, temperatures, seed):
    student, teacher, rows = scene(n, k, d, spread=spread, noise=noise, seed=seed)
    expected = reference(student, teacher, rows, *temperatures)
    keywords = dict(zip(("student_temperature", "teacher_temperature"), temperatures, strict=True))
    loss_error, gradient_error = errors(
        with_gradient(seed_loss, student, teacher, rows, **keywords), expected
    )
    # Scores reach 1 / τ_S; float32 keeps their differences to about 1e-7 / τ_S.
    assert loss_error <= max(1e-6, 2e-7 / temperatures[0])
    assert gradient_error <= 1e-5


@pytest.mark.slow
def test_float32_at_the_papers_queue():
    student, teacher, rows = scene(32, 65_536, 128)
    result = with_gradient(seed_loss, student, teacher, rows)
    # The reference in parts: n × k × d float64 numbers would be 2 GiB.
    parts = [reference(student[i : i + 1], teacher[i : i + 1], rows, 0.2, 0.01) for i in range(32)]
    expected = Reference(
        float(np.mean([part.loss for part in parts])),
        np.concatenate([part.gradient for part in parts]) / 32,
        np.concatenate([part.entropy for part in parts]),
    )
    loss_error, gradient_error = errors(result, expected)
    assert loss_error <= 1e-6
    assert gradient_error <= 1e-5


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("d", [8, 128])
@pytest.mark.parametrize("opposite", [False, True])
def test_tiny_losses_keep_their_digits(k, d, opposite):
    """Student = teacher and few rows: the loss is log(1 + small), down to 5e-5."""
    _, teacher, rows = scene(1, k, d, spread=3.0)
    rows = -teacher + 0.01 * rows if opposite else rows
    result = with_gradient(seed_loss, teacher, teacher, rows)
    loss_error, gradient_error = errors(result, reference(teacher, teacher, rows, 0.2, 0.01))
    assert result[0] < (3e-4 if opposite else 0.2)
    assert loss_error <= 1e-6
    assert gradient_error <= 1e-5


@pytest.mark.parametrize("spread", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("teacher_temperature", [0.01, 1e-3, 1e-4])
def test_at_tiny_temperatures_no_worse_than_the_direct_formula(spread, teacher_temperature):
    """Rows in tight clusters: float32 rounds the teacher's scores, near 1 / τ_T, and so their differences."""
    ours, direct = [], []
    for seed in range(6):
        scene_ = scene(24, 301, 64, spread=spread, seed=seed)
        expected = reference(*scene_, 0.2, teacher_temperature)
        ours.append(
            errors(with_gradient(seed_loss, *scene_, teacher_temperature=teacher_temperature), expected)
        )
        direct.append(errors(with_gradient(direct_torch, *scene_, 0.2, teacher_temperature), expected))
    (loss, gradient), (direct_loss, direct_gradient) = np.max(ours, 0), np.max(direct, 0)
    assert loss <= max(1e-6, direct_loss)
    # In the tightest clusters both pulls on the student nearly cancel, for either formula.
    assert gradient <= max(1.5e-5, 1.3 * direct_gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_empty_queue_gives_exactly_zero(dtype):
    student, teacher, rows = scene(5, 0, 16, dtype)
    student.requires_grad_()
    terms = seed_terms(student, teacher, rows)
    terms.loss.backward()
    assert terms.loss.item() == terms.target_entropy.item() == 0
    assert student.grad is not None
    assert student.grad.count_nonzero() == 0


def test_closed_form_of_one_orthogonal_row():
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    row = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    loss = seed_loss(z, z, row, student_temperature=0.5, teacher_temperature=0.25).item()
    p = 1 / (1 + np.exp(-4))
    assert loss == pytest.approx(
        -p * np.log(1 / (1 + np.exp(-2))) - (1 - p) * np.log(1 / (1 + np.exp(2))), rel=1e-14
    )


def test_rows_that_all_equal_the_own_one():
    """All rows alike: the target is uniform, the loss log(k + 1) whatever the student, its gradient none."""
    _, teacher, _ = scene(1, 0, 16, torch.float64)
    student = normalize(torch.ones(1, 16, dtype=torch.float64), dim=1)
    loss, gradient = with_gradient(seed_loss, student, teacher, teacher.expand(9, 16))
    assert loss == pytest.approx(np.log(10), rel=1e-12)
    assert np.abs(gradient).max() <= 1e-13


@pytest.mark.parametrize("k", [0, 1, 300])
def test_gradcheck(k):
    student, teacher, rows = scene(3, k, 6, torch.float64)
    assert torch.autograd.gradcheck(lambda z: seed_loss(z, teacher, rows), student.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda z: 3 * seed_terms(z, teacher, rows, teacher_temperature=0.1).loss, student
    )


def test_becomes_info_nce_as_the_teacher_sharpens():
    student, teacher, rows = scene(16, 400, 32, torch.float64)
    loss, gradient = with_gradient(info_nce, student, teacher, rows)
    gaps = []
    for teacher_temperature in (0.1, 0.05, 0.02, 1e-4):
        seed, seed_gradient = with_gradient(
            seed_loss, student, teacher, rows, teacher_temperature=teacher_temperature
        )
        gaps.append(abs(seed - loss) + np.abs(seed_gradient - gradient).max())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] <= 1e-12


def test_only_the_student_gets_a_gradient():
    student, teacher, rows = (tensor.requires_grad_() for tensor in scene(4, 30, 8))
    terms = seed_terms(student, teacher, rows)
    assert not terms.target_entropy.requires_grad
    terms.loss.backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert rows.grad is None


def test_nothing_to_differentiate_gives_a_plain_number():
    student, teacher, rows = scene(4, 30, 8)
    assert not seed_loss(student, teacher, rows).requires_grad
    with torch.no_grad():
        assert not seed_loss(student.requires_grad_(), teacher, rows).requires_grad


def test_a_second_derivative_is_refused():
    student, teacher, rows = scene(4, 30, 8)
    weight = torch.ones((), requires_grad=True)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(weight * seed_loss(student, teacher, rows), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_queue_may_change_before_backward():
    student, teacher, rows = scene(8, 64, 16)
    _, expected = with_gradient(seed_loss, student, teacher, rows)
    queue = Queue(64, 16)
    queue.push(rows)
    student.requires_grad_()
    loss = seed_loss(student, teacher, queue.rows())
    queue.push(torch.full((64, 16), torch.nan))
    loss.backward()
    assert student.grad is not None
    np.testing.assert_array_equal(student.grad.double().numpy(), expected)


def test_autocast_gives_the_float32_result():
    student, teacher, rows = scene(8, 600, 16)
    expected = with_gradient(seed_loss, student, teacher, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = with_gradient(seed_loss, student, teacher, rows)
    assert result[0] == expected[0]
    np.testing.assert_array_equal(result[1], expected[1])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_half_precision_student_gets_its_gradient_in_its_own_precision(half):
    student, teacher, rows = scene(8, 600, 16)
    narrow = student.to(half).requires_grad_()
    # The loss scale of float16 training lifts the gradient before it is narrowed.
    scale = 2.0**20
    (scale * seed_loss(narrow, teacher, rows)).backward()
    _, expected = with_gradient(seed_loss, student.to(half).float(), teacher, rows)
    assert narrow.grad is not None
    assert narrow.grad.dtype == half
    assert narrow.grad.equal(torch.from_numpy(expected * scale).float().to(half))


def test_float64_anywhere_makes_the_loss_float64():
    student, teacher, rows = scene(3, 10, 8)
    assert seed_loss(student, teacher, rows).dtype == torch.float32
    assert seed_loss(student.double(), teacher, rows).dtype == torch.float64
    assert seed_loss(student, teacher.double(), rows).dtype == torch.float64


@pytest.mark.parametrize("teacher_temperature", [0.01, 0.2])
@pytest.mark.parametrize("k", [1, 6, 513])
def test_entropy_of_the_target(k, teacher_temperature):
    student, teacher, rows = scene(9, k, 16, torch.float64, spread=0.5)
    expected = reference(student, teacher, rows, 0.2, teacher_temperature).entropy
    entropy = target_entropy(teacher, rows, teacher_temperature=teacher_temperature)
    np.testing.assert_allclose(entropy, expected, atol=1e-12)
    terms = seed_terms(student, teacher, rows, teacher_temperature=teacher_temperature)
    assert terms.target_entropy.item() == pytest.approx(expected.mean(), abs=1e-12)
    # Gibbs: the loss is never below it, and equals it for a student that scores as the teacher does.
    assert terms.loss >= terms.target_entropy
    same = seed_terms(
        teacher,
        teacher,
        rows,
        student_temperature=teacher_temperature,
        teacher_temperature=teacher_temperature,
    )
    assert same.loss.item() == pytest.approx(same.target_entropy.item(), abs=1e-13)


@pytest.fixture
def unchecked_shapes():
    """As users run it, without the tests' own shape checks, which would speak first."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 8), (4, 9), (5, 9)), r"student: shape \[4, 8\]: give the shape of teacher, \[4, 9\]"),
        (((3, 8), (4, 8), (5, 8)), r"student: shape \[3, 8\]: give the shape of teacher, \[4, 8\]"),
        (((4, 8), (4, 8), (5, 9)), r"rows: 9 dimensions: give 8, as teacher has"),
        (((4, 8), (4, 8), (8,)), r"rows: shape \[8\]: give two axes"),
        (((4, 8, 1), (4, 8), (5, 8)), r"student: shape \[4, 8, 1\]: give two axes"),
        (((0, 8), (0, 8), (5, 8)), r"teacher: 0 images: give at least one"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError, match=message):
        seed_loss(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.usefixtures("unchecked_shapes")
def test_whole_numbers_are_no_vectors():
    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"rows: torch.int64: give floating-point vectors"):
        seed_loss(z, z, torch.ones(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["student_temperature", "teacher_temperature"])
def test_temperatures_out_of_range(name, value):
    z = torch.ones(2, 3)
    with pytest.raises(ValueError, match=rf"{name}: {value}: give a finite number above 0"):
        seed_loss(z, z, z, **{name: value})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 350, 699])
def test_no_bad_number_is_hidden(bad, which, place):
    """A run stops at a loss that is no number, so no kernel may lose one."""
    vectors = scene(700, 700, 16)
    vectors[which][place, 3] = bad
    assert not seed_loss(*vectors).isfinite()
