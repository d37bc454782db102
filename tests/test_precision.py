"""What arithmetic is chosen, by what the hardware says it has."""

import pytest
import torch

from tinyseed.precision import autocast_dtype, native_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize("has", [{"amx_bf16": True}, {"avx512_bf16": True}, {"avx512_f": True}])
def test_auto_goes_by_the_processor(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    native = has != {"avx512_f": True}
    assert native_bf16(on_gpu=False) is native
    assert autocast_dtype("auto", CPU) is (torch.bfloat16 if native else None)
    assert autocast_dtype("32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16


@pytest.mark.parametrize("has", [True, False])
def test_a_torch_without_the_list_is_asked_otherwise(monkeypatch, has):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    assert native_bf16(on_gpu=False) is has
