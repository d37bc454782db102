"""Devices, processes and precision of a run: through Lightning Fabric, or by alone.py in one process on the CPU."""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tinyseed.engine.alone import Alone
from tinyseed.engine.processes import STEP_PATIENCE, WAITING_PATIENCE
from tinyseed.errors import InputError
from tinyseed.methods.base import Group, SingleProcess
from tinyseed.precision import native_bf16
from tinyseed.settings.train import TrainSettings
from tinyseed.threads import BEGAN, Moment, number_is_given, threads_beside_others, usable_cores
from tinyseed.torchvision_ops import ensure_torchvision

PrecisionName = Literal["32", "bf16", "16"]


class ProcessGroup:
    """The processes of torch.distributed."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @torch.no_grad()
    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate each process' tensor along the first axis, in order of rank."""
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """The same; gradients of all processes flow back, summed, to the process whose tensor it was."""
        return _Gathered.apply(tensor, self)  # pyright: ignore[reportReturnType]


class _Gathered(torch.autograd.Function):
    """Every process holds the whole tensor, so a part's gradient is the sum of those of all processes.

    DDP then takes the mean over processes: of a mean of local losses that is the one-process gradient.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:  # noqa: ANN401
        ctx.mine = slice(group.rank * len(tensor), (group.rank + 1) * len(tensor))
        return group.gather(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.mine], None


@runtime_checkable
class Fabric(Protocol):
    """What a run uses of `lightning_fabric.Fabric`, and what `Alone` offers too."""

    @property
    def device(self) -> torch.device:
        """This process' device."""
        ...

    def setup(self, module: nn.Module, optimizer: Any, /) -> Any:  # noqa: ANN401
        """Module and optimizer as they are used in steps."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context manager."""
        ...

    def backward(self, tensor: Tensor) -> None:
        """Gradients of a loss."""
        ...

    def no_backward_sync(self, module: Any) -> AbstractContextManager[Any]:  # noqa: ANN401
        """Processes exchange no gradients in this context."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """Something whose state belongs to a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore what `state_dict` returned."""
        ...


@dataclass(frozen=True)
class Runtime:
    """Where a run computes.

    Attributes:
        precision: as resolved, never "auto".
        plugin: Fabric's precision plugin; its state (the loss scale of float16) belongs to a checkpoint.
        waiting: the processes that `barrier` waits for; None: there is one only.
    """

    fabric: Fabric
    plugin: Stateful
    precision: PrecisionName
    group: Group
    waiting: dist.ProcessGroup | None = None

    @property
    def device(self) -> torch.device:
        """This process' device."""
        return self.fabric.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.group.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context manager, for networks that Fabric did not wrap."""
        return self.fabric.autocast()

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype of autocast; None for float32."""
        return {"bf16": torch.bfloat16, "16": torch.float16, "32": None}[self.precision]

    def unscale(self, optimizer: Any) -> None:  # noqa: ANN401  (Fabric may have wrapped it)
        """Divide the gradients by the loss scale of float16, which is otherwise done in the optimizer's step."""
        scaler = getattr(self.plugin, "scaler", None)
        if scaler is not None:
            scaler.unscale_(getattr(optimizer, "optimizer", optimizer))

    def largest(self, values: list[float]) -> list[float]:
        """The elementwise maximum over the processes; the same for all of them."""
        if self.group.size == 1:
            return values
        values_here = torch.tensor([values], dtype=torch.float64, device=self.device)
        return self.group.gather(values_here).amax(0).tolist()

    def agreed(self, value: float) -> float:
        """The largest of the processes' numbers."""
        return self.largest([value])[0]

    def barrier(self) -> None:
        """Wait until every process is here, however long one of them evaluates or saves."""
        if self.waiting is not None:
            dist.barrier(self.waiting)


def start(settings: TrainSettings) -> Runtime:
    """Join or launch the processes of a run.

    Raises:
        InputError: more devices than there are, or a batch that cannot be divided evenly among them.
    """
    on_gpu = torch.cuda.is_available()
    devices, nodes = _devices(settings, on_gpu)
    share = devices * nodes * settings.accumulate
    whole = share * settings.images_together
    if settings.batch_size % whole:
        pairs = "" if whole == share else " × 2, for the pairs of `mixup`"
        remedy = f"it has to be a multiple of {whole} (devices × nodes × `accumulate`{pairs})"
        raise InputError(settings.batch_size, remedy, argument="batch_size")
    precision = resolve_precision(settings.precision, on_gpu)
    if share == settings.accumulate and not on_gpu:  # one process on the CPU
        alone = Alone(torch.bfloat16 if precision == "bf16" else None)
        return Runtime(alone, alone, precision, SingleProcess())
    return _launched(devices, nodes, precision, on_gpu=on_gpu)


def _launched(devices: int, nodes: int, precision: PrecisionName, *, on_gpu: bool) -> Runtime:
    """The runtime of GPUs or several processes, through Fabric."""
    from lightning_fabric import Fabric

    from tinyseed.engine.launch import WatchedDDP

    plugin = _plugin(precision, "cuda" if on_gpu else "cpu")
    parallel = devices * nodes > 1
    # Buffers are not broadcast: each process keeps its own batch norm statistics, and queues are gathered instead.
    options = {"broadcast_buffers": False, "gradient_as_bucket_view": True, "timeout": STEP_PATIENCE}
    strategy = WatchedDDP(**options) if parallel else "auto"
    fabric = Fabric(
        accelerator="cuda" if on_gpu else "cpu",
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        plugins=[plugin],
    )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # its greetings hide our lines
    fabric.launch()
    waiting = _waiting_group() if parallel else None
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    group = ProcessGroup(fabric.global_rank, fabric.world_size) if parallel else SingleProcess()
    return Runtime(fabric, plugin, precision, group, waiting)


def is_first_process() -> bool:
    """Whether this process shows results, once a run has joined the others."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _waiting_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=WAITING_PATIENCE)
    assert isinstance(group, dist.ProcessGroup)  # an integer stands for a group that this process is not in
    return group


def _devices(settings: TrainSettings, on_gpu: bool) -> tuple[int, int]:
    """Devices per node, and nodes; under torchrun its own numbers."""
    if "LOCAL_WORLD_SIZE" in os.environ and "WORLD_SIZE" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if settings.devices == "auto":
        return (torch.cuda.device_count() if on_gpu else 1), settings.nodes
    devices = int(settings.devices)
    if on_gpu and devices > torch.cuda.device_count():
        raise InputError(devices, f"this machine has {torch.cuda.device_count()} GPUs", argument="devices")
    return devices, settings.nodes


def resolve_precision(wanted: str, on_gpu: bool) -> PrecisionName:
    """bf16 where the hardware supports it natively, otherwise float32.

    Raises:
        InputError: float16 without a GPU.
    """
    match wanted:
        case "32" | "bf16":
            return wanted
        case "16":
            if not on_gpu:
                raise InputError(16, "float16 needs a GPU; give bf16 or 32", argument="precision")
            return "16"
        case _:
            return "bf16" if native_bf16(on_gpu) else "32"


def _plugin(precision: PrecisionName, device: str) -> Any:  # noqa: ANN401  (one of Fabric's)
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.plugins.precision import Precision

    match precision:
        case "bf16":
            return MixedPrecision("bf16-mixed", device)
        case "16":
            return MixedPrecision("16-mixed", device)
        case "32":
            return Precision()


def share_statistics(module: nn.Module, runtime: Runtime) -> nn.Module:
    """Let batch norms compute their statistics over all processes, on GPUs.

    On a CPU torch has no such batch norm: there each process uses its own part of the batch. The conversion is timm's,
    because torch's would drop the activation that some of timm's batch norms contain.
    """
    if runtime.group.size == 1 or runtime.device.type != "cuda":
        return module
    ensure_torchvision()
    from timm.layers.norm_act import convert_sync_batchnorm

    return convert_sync_batchnorm(module)


def worker_count(wanted: int | Literal["auto"], on_gpu: bool, processes: int = 1) -> int:
    """Decoding processes per device: with a GPU up to 16; on the CPU a quarter of the cores, none on two cores.

    On the CPU the cores are divided among the `processes` of a run on this machine first.

    Without workers the main process decodes in threads. On two cores a worker would gain nothing: the networks' threads
    wait for each other whenever a worker takes one of them off its core (bench/step.py).
    """
    if wanted != "auto":
        return wanted
    cores = usable_cores()
    if not on_gpu:
        cores //= processes
        return 0 if cores <= 2 else cores // 4
    return max(1, min(16, cores // max(1, torch.cuda.device_count()) - 1))


@contextmanager
def computing_threads(wanted: int | Literal["auto"], before: int | None, runtime: Runtime) -> Iterator[str]:
    """Compute with as many threads as a run is to have; afterwards with as many as before.

    Args:
        wanted: the setting; "auto" leaves the number to the environment, or to how busy other programs keep the cores.
        before: the number of the run's earlier part, where it is resumed.
        runtime: several processes, and a GPU, leave it to the environment, too.

    Yields:
        What people should know; "" where nothing is unusual.
    """
    usual, note = torch.get_num_threads(), ""
    number = usual
    if wanted != "auto":
        number = wanted
    elif before is not None:
        number = before
    elif runtime.group.size == 1 and runtime.device.type == "cpu" and not number_is_given():
        busy = Moment.now().busy_since(BEGAN)
        number = threads_beside_others(usual, busy)
        if number != usual:
            note = f"{number} of {usual} threads: other programs keep {busy:.1f} cores busy"
    if number != usual:
        torch.set_num_threads(number)
    try:
        yield note
    finally:
        if number != usual:
            torch.set_num_threads(usual)
