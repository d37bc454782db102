"""What MoCo compares queries with: keys of a slowly moving copy of the trained encoder, and a queue of earlier keys.

Source: He et al., Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020 (arXiv 1911.05722).
"""

import copy
from collections.abc import Mapping
from typing import Any

from tinyseed.methods.base import Group, SingleProcess
from tinyseed.methods.parts import addressed, contrast, encoder, queues, shapes, torch


class MomentumContrast:
    """The moving average of a trained encoder, and the queue of its latest embeddings.

    Attributes:
        trained: the encoder that is followed.
        key_encoder: its moving average, which gets no gradient.
        queue: earlier keys.
        momentum: of the moving average, 0 to 1.
        temperature: of the similarities.
        seed: of the grouping of images over processes.
        group: the processes that train together.
    """

    def __init__(
        self,
        trained: "encoder.Encoder",
        queue: "queues.Queue",
        *,
        momentum: float,
        temperature: float,
        seed: int = 0,
        group: Group | None = None,
    ) -> None:
        self.trained = trained
        self.key_encoder = copy.deepcopy(trained).requires_grad_(False)
        self.queue = queue
        self.momentum = momentum
        self.temperature = temperature
        self.seed = seed
        self.group = group or SingleProcess()

    def loss(self, queries: "shapes.Embeddings", keys: "shapes.Embeddings") -> "shapes.Scalar":
        """InfoNCE of queries [n, d] with the keys of the same images against the queue (equation 1)."""
        return contrast.info_nce(queries, keys, self.queue.rows(), temperature=self.temperature)

    def keys(self, images: "shapes.Images", step: int) -> "shapes.Embeddings":
        """Keys of normalized images. Shuffled batch norm: they are grouped otherwise over the processes than queries.

        Otherwise the statistics of a process' batch would reveal which key belongs to which query (section 3.3).
        """
        with torch.no_grad():
            if self.group.size == 1:
                return self.key_encoder(images)
            everything = self.group.gather(images)
            shuffled = addressed.permutation(self.seed, step, len(everything), "shuffled-bn")
            order = torch.from_numpy(shuffled)
            if images.is_cuda:  # from other memory a transfer would be waited for
                order = order.pin_memory()
            order = order.to(images.device, non_blocking=True)
            mine = slice(self.group.rank * len(images), (self.group.rank + 1) * len(images))
            keys = self.group.gather(self.key_encoder(everything[order[mine]]))
            return keys[order.argsort()[mine]]

    def follow(self) -> None:
        """Move the key encoder towards the trained one.

        Differs: MoCo's code moves it at the start of the next step; the values that are used are the same.
        """
        with torch.no_grad():
            pairs = zip(self.key_encoder.parameters(), self.trained.parameters(), strict=True)
            for key, query in pairs:
                key.lerp_(query, 1 - self.momentum)

    def push(self, keys: "shapes.Embeddings") -> None:
        """Enqueue the keys of all processes."""
        self.queue.push(self.group.gather(keys))

    def state(self) -> Mapping[str, Any]:
        """Key encoder and queue, by the prefixes of a method's state."""
        return {"key_encoder.": self.key_encoder, "queue.": self.queue}

    def channels_last(self) -> None:
        """Lay the key encoder's weights out for images in channels-last memory."""
        self.key_encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
