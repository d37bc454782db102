"""The arithmetic that networks run in: float32 or bfloat16."""

from typing import Literal

import torch

EvaluationPrecision = Literal["auto", "32", "bf16"]


def native_bf16(on_gpu: bool) -> bool:
    """Whether the hardware itself multiplies bfloat16, by the capabilities that it reports."""
    if on_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    if capabilities:
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def autocast_dtype(wanted: EvaluationPrecision, device: torch.device) -> torch.dtype | None:
    """The dtype for autocast, None for float32; auto: bfloat16 if the hardware multiplies it natively.

    >>> autocast_dtype("bf16", torch.device("cpu")), autocast_dtype("32", torch.device("cpu"))
    (torch.bfloat16, None)
    """
    bf16 = native_bf16(device.type == "cuda") if wanted == "auto" else wanted == "bf16"
    return torch.bfloat16 if bf16 else None
