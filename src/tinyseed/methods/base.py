"""What a method is: the parts of a training step that it decides, and the record by which everything else knows it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from tinyseed.data.augmentation import View
from tinyseed.errors import InputError, argument
from tinyseed.memory import require_memory
from tinyseed.methods.parts import (
    backbones,
    checkpointing,
    depthwise,
    encoder,
    initial,
    queues,
    render,
    shapes,
    teacher,
    torch,
)
from tinyseed.methods.views import Targets
from tinyseed.settings.train import DistillSettings, TrainSettings

Forward = Callable[..., Any]
"""The trained module as the engine wrapped it (mixed precision, DDP); for most methods from normalized images to unit
rows."""


@runtime_checkable
class Group(Protocol):
    """The processes that train together."""

    rank: int
    size: int

    def gather(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Concatenate each process' tensor along the first axis, in order of rank; the same on every process."""
        ...

    def gather_with_gradient(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The same; gradients of all processes flow back, summed, to the process whose tensor it was."""
        ...


class SingleProcess:
    """A group of one process."""

    rank = 0
    size = 1

    def gather(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The tensor itself."""
        return tensor

    def gather_with_gradient(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The tensor itself."""
        return tensor


@dataclass(frozen=True)
class StepOutput:
    """Result of one micro-batch.

    Attributes:
        loss: mean over this process' images; differentiable.
        rows: unit rows [n, d] to enqueue once the optimizer has stepped; None for methods without a queue.
        target_entropy: mean entropy of the teacher's target in nats, for methods that have one.
    """

    loss: "shapes.Scalar"
    rows: "shapes.Embeddings | None" = None
    target_entropy: "shapes.Scalar | None" = None


class Method(ABC):
    """One way to train an encoder.

    The training loop calls, in this order: `views` and `prepare` once, then in each step `step`, `adjust_gradients` and
    `advance`.

    Attributes:
        module: what is trained; the only thing that the optimizer and DDP see.
        encoder: the part of it that is evaluated and saved.
        group: the processes that train together.
        teacher: the frozen teacher of a method that has one.
    """

    def __init__(
        self, module: "torch.nn.Module", trained: "encoder.Encoder", group: Group | None = None
    ) -> None:
        self.module = module
        self.encoder = trained
        self.group = group or SingleProcess()
        self.teacher: teacher.Teacher | None = None

    @abstractmethod
    def views(self, image_size: int) -> tuple[View, ...]:
        """The random views of each image that a step takes, for networks that see `image_size` render."""

    def prepare(self, teacher_rows: "Callable[[int], shapes.Embeddings]") -> None:  # noqa: B027  (most need nothing)
        """Make state of what the teacher gives for training images, before the first step of a new run.

        Only methods with a teacher are asked; a resumed run has the state in its checkpoint.

        Args:
            teacher_rows: given a number, the unit rows [n, d] of at most that many training images, seen without
                random changes; the same on every process.
        """

    @abstractmethod
    def step(self, forward: Forward, views: "tuple[shapes.ImagesOfAnySize, ...]", step: int) -> StepOutput:
        """Views in [0, 1] to a loss. Changes nothing that a later step reads."""

    def adjust_gradients(self, step: int) -> None:  # noqa: B027  (most methods leave them)
        """Change or drop gradients between the backward pass and the optimizer's step."""

    def advance(self, outputs: Sequence[StepOutput]) -> None:  # noqa: B027  (most methods have no state)
        """Update the method's state (queue, momentum encoder); called once, after the optimizer's step."""

    def state(self) -> "Mapping[str, Any]":
        """The parts of the method's own state by the prefix of their names; the module is saved by the engine.

        Each part has `to`, `state_dict` and `load_state_dict`; a name belongs to the longest prefix that fits.
        """
        return {}

    def to(self, device: "torch.device") -> None:
        """Move the method's own state to a device."""
        for part in self.state().values():
            part.to(device)

    def state_dict(self) -> "dict[str, torch.Tensor]":
        """The method's own state, for a checkpoint."""
        return {
            f"{prefix}{name}": value
            for prefix, part in self.state().items()
            for name, value in part.state_dict().items()
        }

    def load_state_dict(self, state: "dict[str, torch.Tensor]") -> None:
        """Restore what `state_dict` returned."""
        parts = self.state()
        own: dict[str, dict[str, torch.Tensor]] = {prefix: {} for prefix in parts}
        for name, value in state.items():
            prefixes = [prefix for prefix in parts if name.startswith(prefix)]
            if prefixes:
                prefix = max(prefixes, key=len)
                own[prefix][name.removeprefix(prefix)] = value
        for prefix, part in parts.items():
            part.load_state_dict(own[prefix])

    def calibrate(
        self,
        settings: TrainSettings,
        teacher_rows: "shapes.Embeddings | None",
        agree: Callable[[float], float],
    ) -> tuple[TrainSettings, str | None]:
        """Choose settings that depend on the teacher's embeddings; called once, before the first step.

        Args:
            settings: of the run.
            teacher_rows: the teacher's unit rows of the held-out images; None where there are too few of them.
            agree: the same number for all processes, from that of each.

        Returns:
            The settings of the run, with those chosen; and what people should know of them.

        Raises:
            InputError: they cannot be chosen.
        """
        del teacher_rows, agree
        return settings, None

    def preview(self, views: "tuple[shapes.ImagesOfAnySize, ...]") -> None:  # noqa: B027  (most methods want none)
        """Change the method's state by views that the network is not trained on, before the first step."""

    @property
    def preview_images(self) -> int:
        """How many images it previews before the first step."""
        return 0

    def health(self, teacher_rows: "shapes.Embeddings") -> dict[str, float]:
        """Metrics of the method's own from the teacher's unit rows of the held-out images."""
        del teacher_rows
        return {}


@dataclass(frozen=True)
class Setup:
    """What a method is built from.

    Attributes:
        settings: complete, without "auto" where it depends on the data.
        teacher: the frozen teacher of a method that has one.
        targets: what that teacher makes of views, where the caller shares or keeps it; None: it is asked anew.
        group: the processes that train together.
        steps_per_epoch: optimizer steps per pass over the data.
        resumed: whether all weights will come from a checkpoint of the run.
    """

    settings: Any
    teacher: "teacher.Teacher | None" = None
    targets: Targets | None = None
    group: Group | None = None
    steps_per_epoch: int = 1
    resumed: bool = False

    def encoder(self, dim: int) -> "encoder.Encoder":
        """The network to train, with fresh or given weights and a fresh head onto `dim`; the same for the same seed.

        Raises:
            InputError: an unknown model name, one that cannot take the images, or weights of another.
        """
        settings = self.settings
        with argument(settings.NETWORK):
            backbone = backbones.build_backbone(
                settings.network,
                small_stem=settings.small_stem,
                image_size=settings.image_size,
                channels=settings.channels,
                seed=settings.seed,
            )
        network, weights = settings.NETWORK, settings.initial_weights
        if weights is not None and not self.resumed:
            with argument(f"{network}_weights", arch=network, prefix=f"{network}_prefix"):
                initial.initialize(backbone, weights, getattr(settings, f"{network}_prefix"))
        depthwise.gradients_in_float32(backbone.network)
        if settings.checkpoint_activations and not checkpointing.checkpoint_blocks(backbone.network):
            remedy = f"{settings.network} has no blocks that could be computed again; leave it out"
            raise InputError("given", remedy, argument="checkpoint_activations")
        hidden = None if settings.projector_hidden == "auto" else settings.projector_hidden
        layers = None if settings.projector_layers == "auto" else settings.projector_layers
        shape = (settings.projector, backbone.width, dim, hidden)
        with torch.device("meta"):
            head = encoder.build_projector(*shape, layers=layers)
        if head is not None:
            numbers = sum(parameter.numel() for parameter in head.parameters())
            given = (dim, "dim") if hidden is None else (hidden, "projector_hidden")
            require_memory(12 * numbers, *given)  # weights, gradients and momenta, in float32
        head = encoder.build_projector(*shape, layers=layers, seed=settings.seed)
        expected = replace(
            backbone.input,
            mean=settings.channel_mean or render.IMAGENET_MEAN,
            std=settings.channel_std or render.IMAGENET_STD,
            size=settings.image_size,
            interpolation="bilinear",
            pixel_range=settings.pixel_range,
        )
        return encoder.Encoder(backbone, head).with_input(expected)

    def queue(self, dim: int) -> "queues.Queue":
        """An empty queue of rows of this dimension, for a method that has the setting `queue_size`.

        Raises:
            InputError: it does not fit into memory.
        """
        size: int = getattr(self.settings, "queue_size")  # noqa: B009  (not every method's)
        require_memory(4 * size * dim, size, "queue_size")
        return queues.Queue(size, dim)


@dataclass(frozen=True)
class MethodSpec:
    """Everything that the rest of tinyseed knows about a method.

    Attributes:
        name: as in `tinyseed pretrain NAME` and `tinyseed distill --method NAME`.
        label: its name in the field's spelling.
        about: one line for the help.
        settings: its settings, a subclass of `DistillSettings` (it then has a teacher) or `PretrainSettings`.
        build: makes the method.
        warmup_epochs: epochs of warm-up where the settings leave it to the method.
        fused_sgd: whether SGD's fused step suits it; torch's needs the momenta of all parameters to begin at once.
        sync_batch_norm: whether batch norms take their statistics over all GPUs.
        collapse_hint: what has helped where its features collapsed; ends a sentence "… may help".
        loss_note: how to read its loss curve.
        default: whether `tinyseed distill` without a method's name runs it.
    """

    name: str
    label: str
    about: str
    settings: type[TrainSettings]
    build: Callable[[Setup], Method]
    warmup_epochs: float = 5
    fused_sgd: bool = True
    sync_batch_norm: bool = False
    collapse_hint: str = "A lower `lr`, a larger `batch_size` or another temperature"
    loss_note: str = "The loss does not tell whether the features are good."
    default: bool = False

    @property
    def has_teacher(self) -> bool:
        """Whether it distills a teacher."""
        return issubclass(self.settings, DistillSettings)

    @property
    def command(self) -> str:
        """The command line that runs it, as config.json names it: each method has its own."""
        if not self.has_teacher:
            return f"pretrain {self.name}"
        return "distill" if self.default else f"distill --method {self.name}"

    @property
    def model_file(self) -> str:
        """Where a run writes its backbone: a distilled one is a student, a pre-trained one an encoder."""
        return "student.safetensors" if self.has_teacher else "encoder.safetensors"
