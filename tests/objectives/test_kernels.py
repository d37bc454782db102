"""Fused kernels: what is expected of them, the CUDA path with a stand-in for its operator, and no wait for a device."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from tinyseed.objectives import kernels, similarity, streaming
from tinyseed.objectives.seed import seed_terms
from tinyseed.objectives.similarity import soft_lookup


def vectors(n: int, k: int, d: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    queries = 5 * normalize(torch.randn(n, d, generator=generator), dim=1)
    return queries, normalize(torch.randn(k, d, generator=generator), dim=1)


def direct(queries, rows):
    scores = queries.double() @ rows.double().T
    return scores.softmax(1) @ rows.double(), scores.logsumexp(1)


@pytest.fixture(autouse=True)
def _forget():
    kernels.kernel_works.cache_clear()
    yield
    kernels.kernel_works.cache_clear()


@pytest.mark.parametrize("failure", [AttributeError, NotImplementedError, RuntimeError])
def test_falls_back_where_the_kernel_is_absent(monkeypatch, failure):
    def absent(*_):
        raise failure

    queries, rows = vectors(4, 300, 8)
    expected = soft_lookup(queries, rows)
    monkeypatch.setitem(kernels.KERNELS, "cpu", absent)
    kernels.kernel_works.cache_clear()
    assert not kernels.kernel_works("cpu", torch.float32)
    found = soft_lookup(queries, rows)
    torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(found.log_normalizer, expected.log_normalizer)


@pytest.mark.parametrize(
    "changed",
    [
        lambda values, log_normalizer: (values * 2, log_normalizer),
        lambda values, log_normalizer: (values, log_normalizer / 0.6931),  # base 2
        lambda values, log_normalizer: (values, log_normalizer[..., None]),
        lambda values, log_normalizer: (values.double(), log_normalizer),
    ],
)
def test_a_kernel_that_gives_something_else_is_not_used(monkeypatch, changed):
    real = kernels.KERNELS["cpu"]
    monkeypatch.setitem(kernels.KERNELS, "cpu", lambda queries, rows: changed(*real(queries, rows)))
    assert not kernels.kernel_works("cpu", torch.float32)


def test_a_kernel_in_reduced_precision_is_not_used(monkeypatch):
    """TF32, as a GPU's matrix units have it: ten bits after the leading one."""

    def short(numbers):
        return (numbers.view(torch.int32) & ~0x1FFF).view(torch.float32)

    real = kernels.KERNELS["cpu"]
    monkeypatch.setitem(
        kernels.KERNELS,
        "cpu",
        lambda queries, rows: real(short(queries.contiguous()), short(rows.contiguous())),
    )
    assert not kernels.kernel_works("cpu", torch.float32)


def test_kernels_are_present_in_the_tested_set():
    assert kernels.kernel_works("cpu", torch.float32)
    assert kernels.kernel_works("cpu", torch.float64)
    assert not kernels.kernel_works("mps", torch.float32)


def efficient_attention(query, key, value, bias, compute_log_sumexp, dropout, causal, *, scale):
    """The contract of the CUDA operator, in plain operators: the log-normalizer is padded to a multiple of 32."""
    assert key is value
    assert (bias, compute_log_sumexp, dropout, causal, scale) == (None, True, 0.0, False, 1.0)
    scores = query @ key.mT
    padding = scores.new_full((*scores.shape[:2], -scores.shape[2] % 32), torch.inf)
    log_normalizer = torch.cat([scores.logsumexp(-1), padding], -1)
    seed = torch.zeros((), dtype=torch.int64)
    return scores.softmax(-1) @ value, log_normalizer, seed, seed


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The CUDA path on the CPU, with a stand-in for the operator and 132 multiprocessors."""
    operator = "_scaled_dot_product_efficient_attention"
    monkeypatch.setattr(torch.ops.aten, operator, efficient_attention, raising=False)
    monkeypatch.setitem(kernels.KERNELS, "cpu", kernels.KERNELS["cuda"])
    monkeypatch.setattr(kernels, "workers", lambda _: 132)
    for module in (streaming, similarity):
        monkeypatch.setattr(module, "may_select", lambda _: False)


def test_the_stand_in_takes_what_the_operator_takes():
    schema = torch.ops.aten._scaled_dot_product_efficient_attention.default._schema
    names = [argument.name for argument in schema.arguments]
    expected = ["query", "key", "value", "attn_bias", "compute_log_sumexp", "dropout_p", "is_causal", "scale"]
    assert names == expected
    assert [given.name for given in schema.returns][:2] == ["output", "log_sumexp"]
    # The operator's own shapes, without its arithmetic.
    shape = torch.empty(3, 1, 5, 8, device="meta")
    rows = torch.empty(3, 1, 70, 8, device="meta")
    values, log_normalizer = kernels.KERNELS["cuda"](shape, rows)
    assert (values.shape, log_normalizer.shape) == ((3, 1, 5, 8), (3, 1, 5))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("n", [1, 33, 100])
@pytest.mark.parametrize("k", [1, 257, 5003])
def test_the_path_of_a_gpu_equals_float64(n, k):
    queries, rows = vectors(n, k, 16)
    assert kernels.kernel_works("cpu", torch.float32)
    found = soft_lookup(queries, rows)
    values, log_normalizer = direct(queries, rows)
    torch.testing.assert_close(found.values.double(), values, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.log_normalizer.double(), log_normalizer, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(("queries", "shards"), [(32, 264), (512, 33), (100_000, 1)])
def test_few_queries_fill_a_gpu_by_shards(monkeypatch, queries, shards):
    monkeypatch.setattr(kernels, "workers", lambda _: 132)
    assert kernels._cuda_shards(torch.empty(queries, 1)) == shards


class NoWait(TorchDispatchMode):
    """Refuses operators for whose result or shape a program has to wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "item", "masked_select", "equal", "unique", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name.startswith(self.WAITING) or (
            name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        ):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("d", [64, 600])
@pytest.mark.parametrize("k", [0, 100, 5000])
def test_on_a_gpu_the_loss_never_waits_for_the_device(d, k):
    _, rows = vectors(1, k, d)
    student, teacher = (normalize(vectors(8, 1, d, seed)[0], dim=1) for seed in (1, 2))
    kernels.kernel_works("cpu", torch.float32)  # once per process
    student.requires_grad_()
    with NoWait():
        seed_terms(student, teacher, rows).loss.backward()
    assert student.grad is not None


def test_waiting_is_noticed():
    queries, rows = vectors(4, 5000, 600)
    with pytest.raises(AssertionError, match="waits for the device"), NoWait():
        soft_lookup(20 * queries, rows)
