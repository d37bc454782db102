"""The engines `onnx` and `int8`: ONNX Runtime on the CPU. Need the packages of the extra `onnx`."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyseed.files import digest
from tinyseed.models.backbones import Backbone
from tinyseed.models.engines.base import EngineSpec, in_pieces
from tinyseed.models.onnx_export import has_onnx, onnx_file, silent
from tinyseed.shapes import Features, Images

PIECE = 32
"""Images that are computed at a time; a part of a network's ONNX file."""


class OnnxEngine:
    """A backbone as an ONNX file of `PIECE` images.

    Args:
        content: the file.

    Attributes:
        key: stands for the file.
    """

    def __init__(self, content: bytes) -> None:
        self.key = digest("onnx", content, digits=16)
        self._content = content
        self._session = _session(content)
        self._name = self._session.get_inputs()[0].name

    def __reduce__(self) -> tuple[object, ...]:
        return OnnxEngine, (self._content,)  # a session can be neither copied nor pickled

    def __call__(self, images: Images) -> Features:
        """Features [n, f], float32."""
        return in_pieces(self._compute, images.float().contiguous(), PIECE)

    def _compute(self, images: Tensor) -> Tensor:
        count = len(images)
        if count < PIECE:
            images = torch.cat([images, images.new_zeros(PIECE - count, *images.shape[1:])])
        (features,) = self._session.run(None, {self._name: images.numpy()})
        return torch.from_numpy(np.asarray(features)[:count])


def _session(content: bytes) -> Any:  # noqa: ANN401  (an optional package's type)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # Its threads would go on spinning for a while after each call, on the cores that the student needs then.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def build_onnx(backbone: Backbone, images: Images) -> OnnxEngine:
    """The network in float32, as it is."""
    return OnnxEngine(_exported(backbone, images))


def build_int8(backbone: Backbone, images: Images) -> OnnxEngine:
    """The network with weights and activations in 8 bits, whose ranges are those that occur for the images."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, silent(""):
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(_exported(backbone, images))
        quantize_static(
            before,
            after,
            _calibration(_session(before.read_bytes()).get_inputs()[0].name, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return OnnxEngine(after.read_bytes())


def _exported(backbone: Backbone, images: Images) -> bytes:
    first = images[:1].float().contiguous().expand(PIECE, -1, -1, -1).contiguous()
    return onnx_file(backbone.network, first)


def _calibration(name: str, images: Images) -> Any:  # noqa: ANN401  (an optional package's type)
    from onnxruntime.quantization import CalibrationDataReader

    def pieces() -> Iterator[dict[str, NDArray[np.float32]]]:
        again = images.repeat(-(-PIECE // len(images)), 1, 1, 1)
        for part in images.split(PIECE):
            yield {name: torch.cat([part, again])[:PIECE].float().contiguous().numpy()}

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._pieces = pieces()

        def get_next(self) -> Any:  # noqa: ANN401
            return next(self._pieces, None)

    return Reader()


def _missing() -> str | None:
    if torch.cuda.is_available():
        return "a machine without a GPU: it computes on the CPU"
    return None if has_onnx() else "the packages of an extra: pip install 'tinyseed[onnx]'"


ONNX = EngineSpec("onnx", "ONNX Runtime, float32", build_onnx, _missing)
INT8 = EngineSpec(
    "int8",
    "ONNX Runtime, weights and activations in 8 bits",
    build_int8,
    _missing,
    images=256,
    cosine=0.97,
    agreement=0.7,
)
