"""A network as an ONNX file. Needs the packages of the extra `onnx`."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def has_onnx() -> bool:
    """Whether the packages of the extra `onnx` are installed."""
    return all(find_spec(name) is not None for name in ONNX_PACKAGES)


def onnx_file(network: nn.Module, images: Tensor) -> bytes:
    """The network in float32 as one ONNX file, weights included, for images of this shape, their number included."""
    in_float32 = torch.autocast(images.device.type, enabled=False)
    with tempfile.TemporaryDirectory() as folder, silent(), torch.no_grad(), in_float32:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(network, (images,), path, dynamo=True, external_data=False, verbose=False)
        return path.read_bytes()


@contextmanager
def silent(*loggers: str) -> Iterator[None]:
    """Silence exporters and quantizers, which report through logging, warnings and prints.

    Args:
        loggers: names of loggers beside that of torch's exporter; "" is the root.
    """
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", *loggers))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
