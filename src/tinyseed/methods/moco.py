"""MoCo, v1 and v2: two views of an image agree against a queue of keys from a slowly moving encoder.

Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020 (arXiv 1911.05722);
Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020 (arXiv 2003.04297).
Imports objectives, models and data; never another method.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tinyseed.data.addressed import permutation
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.render import normalize
from tinyseed.methods.method import Alone, Forward, Group, StepOutput
from tinyseed.models.encoder import Encoder
from tinyseed.objectives.contrast import info_nce
from tinyseed.objectives.queue import Queue
from tinyseed.shapes import Embeddings, Images


@dataclass(frozen=True, kw_only=True)
class MoCoConfig:
    """MoCo's settings; defaults are those of v2's paper."""

    queue_size: int | Literal["auto"] = "auto"
    """Keys in the queue; auto: the largest power of two up to half the data set, at most 65,536."""
    temperature: float = 0.2
    """Temperature of the similarities."""
    encoder_momentum: float = 0.999
    """How much of the momentum encoder stays at each step."""
    dim: int = 128
    """Dimension of the embedding."""
    projector: Literal["mlp", "linear"] = "mlp"
    """Head on the trunk: MoCo-v2's MLP, or v1's linear one."""
    projector_hidden: int | Literal["auto"] = "auto"
    """Width of the MLP's hidden layer; auto: the trunk's width."""
    augmentation: Literal["v2", "v1"] = "v2"
    """Colour jitter: v2's (four in five views, hue up to 0.1), or v1's (every view, hue up to 0.4)."""
    blur_probability: float = 0.5
    """Share of the views that are blurred: v2 0.5, v1 0; 0 suits images of 32 px."""


class MoCo:
    """The method: a trained encoder for the queries, its moving average for the keys, and the queue."""

    def __init__(
        self, config: MoCoConfig, encoder: Encoder, queue: Queue, seed: int = 0, group: Group | None = None
    ) -> None:
        self.config = config
        self.module = self.encoder = encoder
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = queue
        self.seed = seed
        self.group = group or Alone()

    def views(self, image_size: int) -> tuple[View, ...]:
        """Two, drawn alike.

        Differs: v1's code turns views gray before the jitter; here gray always comes after it.
        """
        blur = self.config.blur_probability
        match self.config.augmentation:
            case "v2":
                settings = ViewSettings(blur_probability=blur)
            case "v1":
                settings = ViewSettings(hue=0.4, jitter_probability=1.0, blur_probability=blur)
        return (View(settings, image_size),) * 2

    def step(self, forward: Forward, views: tuple[Images, ...], step: int) -> StepOutput:
        """Queries from the first view, keys from the second (1911.05722, algorithm 1)."""
        first, second = (normalize(view, self.encoder.input.mean, self.encoder.input.std) for view in views)
        queries = forward(first)
        keys = self._keys(second, step)
        loss = info_nce(queries, keys, self.queue.rows(), temperature=self.config.temperature)
        return StepOutput(loss, keys)

    @torch.no_grad()
    def _keys(self, images: Images, step: int) -> Embeddings:
        """Shuffled batch norm: keys are made in another grouping over the processes than the queries.

        Otherwise the statistics of a process' batch would tell which key belongs to which query
        (1911.05722, section 3.3).
        """
        if self.group.size == 1:
            return self.key_encoder(images)
        everything = self.group.gather(images)
        order = torch.from_numpy(permutation(self.seed, step, len(everything), "shuffled-bn")).to(
            images.device
        )
        mine = slice(self.group.rank * len(images), (self.group.rank + 1) * len(images))
        keys = self.group.gather(self.key_encoder(everything[order[mine]]))
        return keys[order.argsort()[mine]]

    def adjust_gradients(self, step: int) -> None:
        """Nothing to change."""

    @torch.no_grad()
    def advance(self, outputs: Sequence[StepOutput]) -> None:
        """Move the key encoder towards the trained one, then push the keys of all processes.

        Differs: MoCo's code moves it at the start of the next step; the values that are used are the same.
        """
        weight = 1 - self.config.encoder_momentum
        pairs = zip(self.key_encoder.parameters(), self.module.parameters(), strict=True)
        for key, query in pairs:
            key.lerp_(query, weight)
        for output in outputs:
            assert output.rows is not None
            self.queue.push(self.group.gather(output.rows))

    def to(self, device: torch.device) -> None:
        """Move the key encoder and the queue."""
        self.key_encoder.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.queue.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Key encoder and queue."""
        keys = {f"key_encoder.{name}": value for name, value in self.key_encoder.state_dict().items()}
        return keys | {f"queue.{name}": value for name, value in self.queue.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore key encoder and queue."""
        self.key_encoder.load_state_dict(_below(state, "key_encoder."))
        self.queue.load_state_dict(_below(state, "queue."))


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
