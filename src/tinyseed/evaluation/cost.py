"""What a network costs to run: parameters, multiply-adds, file size, and time per image on the CPU.

The time is ONNX Runtime's if the packages of the extra `onnx` are installed, otherwise PyTorch's.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinyseed.models.encoder import Encoder
from tinyseed.models.onnx_export import has_onnx, onnx_file

WARM_UP = 5
LATENCY_RUNS = 50


@dataclass(frozen=True)
class Cost:
    """A backbone's cost for one image of its input's size.

    Attributes:
        parameters: numbers that training changes.
        gmacs: billions of multiply-adds in its convolutions, matrix products and attention; FLOPs are twice that.
        file_mb: of its weights as a float32 safetensors file, in 10^6 bytes.
        latency_ms: median time per image (batch size 1) on the CPU, in milliseconds.
        latency_by: what was timed, and on how many threads.
    """

    parameters: int
    gmacs: float
    file_mb: float
    latency_ms: float
    latency_by: str


def cost(encoder: Encoder, *, threads: int = 1, runs: int = LATENCY_RUNS) -> Cost:
    """Measure a backbone on the CPU.

    Args:
        encoder: its backbone is measured, at its input's size, in evaluation mode.
        threads: number of processor threads for the timing.
        runs: number of images timed, after a few for warming up.
    """
    network = encoder.backbone.cpu().eval()
    contract = encoder.input
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, contract.channels, contract.size, contract.size, generator=generator)
    state = network.network.state_dict()
    latency, by = _latency(network, image, threads, runs)
    return Cost(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        gmacs=multiply_adds(network, image) / 1e9,
        file_mb=sum(value.numel() * value.element_size() for value in state.values()) / 1e6,
        latency_ms=1000 * latency,
        latency_by=by,
    )


@torch.no_grad()
def multiply_adds(network: nn.Module, images: Tensor) -> int:
    """Multiply-adds of a forward pass: half of PyTorch's count, in which each is two."""
    with FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


def _latency(network: nn.Module, image: Tensor, threads: int, runs: int) -> tuple[float, str]:
    """Median seconds per image, and what was timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    on = f"{threads} thread{'s' if threads > 1 else ''}"
    try:
        session = _onnx_session(network, image, threads)
        if session is not None:
            return _median(session, runs), f"ONNX Runtime, {on}"
        with torch.inference_mode():
            return _median(lambda: network(image), runs), f"PyTorch, {on}"
    finally:
        torch.set_num_threads(before)


def _median(work: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(WARM_UP + runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_UP:])


def _onnx_session(network: nn.Module, image: Tensor, threads: int) -> Callable[[], object] | None:
    """Runs the network in ONNX Runtime; None if its packages are missing or the network cannot be exported."""
    if not has_onnx():
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        content = onnx_file(network, image)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  (exporters fail in any way; PyTorch is timed instead)
        return None
    given = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, given)
