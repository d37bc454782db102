"""The engine `compile`: torch.compile, with the weights as constants. Compiles itself for a minute or so."""

import shutil
from importlib.util import find_spec

import torch
from torch import Tensor

from tinyseed.models.backbones import Backbone
from tinyseed.models.engines.base import EngineSpec, in_pieces
from tinyseed.models.onnx_export import silent
from tinyseed.shapes import Features, Images

PIECE = 32
"""Images that a CPU computes at a time; the compiled code is for this number."""


class CompiledEngine:
    """A backbone compiled at its first call, for each dtype of autocast."""

    key = "compile"

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._compiled = torch.compile(backbone.network, dynamic=False)

    def __reduce__(self) -> tuple[object, ...]:
        return CompiledEngine, (self._backbone,)

    def __call__(self, images: Images) -> Features:
        """Features [n, f], in the dtype that autocast gives them."""
        if images.device.type != "cpu":
            return self._compiled(images)
        return in_pieces(self._compute, images, PIECE)

    def _compute(self, images: Tensor) -> Tensor:
        from torch._inductor import config

        count = len(images)
        if count < PIECE:
            images = torch.cat([images, images.new_zeros(PIECE - count, *images.shape[1:])])
        images = images.contiguous(memory_format=torch.channels_last)
        with config.patch(freezing=True), silent("torch._inductor", "torch._dynamo"):
            return self._compiled(images)[:count]


def build_compiled(backbone: Backbone, images: Images) -> CompiledEngine:
    """Compile and compute once, so that what fails does so here."""
    engine = CompiledEngine(backbone)
    engine(images)
    return engine


def _missing() -> str | None:
    if torch.cuda.is_available():
        return None if find_spec("triton") is not None else "Triton: pip install triton"
    found = any(shutil.which(name) is not None for name in ("g++", "clang++", "c++"))
    return None if found else "a C++ compiler, such as g++"


COMPILE = EngineSpec("compile", "torch.compile", build_compiled, _missing)
