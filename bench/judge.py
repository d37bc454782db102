"""k-NN of backbones on one labeled data set, by the same code and on the same pixels for all of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinyseed.data.labels import align_labels
from tinyseed.data.loader import evaluation_batches
from tinyseed.data.render import normalize
from tinyseed.data.sources import open_source
from tinyseed.evaluation.neighbors import knn
from tinyseed.models.backbones import build_backbone


class Judge:
    """k-NN on test images; all images are decoded once."""

    def __init__(self, train: Path, test: Path, size: int) -> None:
        sources = [open_source([str(path)]) for path in (train, test)]
        self.size = size
        self.pixels = [_decoded(source, size) for source in sources]
        labels = align_labels(sources[0].classes, sources[1].classes, sources[1].labels)
        self.labels = [torch.from_numpy(values) for values in (sources[0].labels, labels)]

    @torch.no_grad()
    def top1(self, backbone: nn.Module) -> float:
        """In per cent, of the 10 nearest by the backbone's features."""
        backbone.eval()
        train, test = (
            torch.cat([backbone(normalize(part / 255)) for part in pixels.split(256)])
            for pixels in self.pixels
        )
        (result,) = knn(train, self.labels[0], test, self.labels[1], k=(10,))
        return 100 * result.top1

    def curve(self, name: str, snapshots: Sequence[tuple[int, Path, float]]) -> list[dict]:
        """k-NN of a network's weights after some epochs, given as (epoch, file, seconds of training)."""
        points = []
        for epoch, path, seconds in snapshots:
            backbone = build_backbone(name, image_size=self.size)
            weights = torch.load(path)
            backbone.network.load_state_dict({key: weights[key] for key in backbone.network.state_dict()})
            points.append({"epoch": epoch, "seconds": seconds, "top1": self.top1(backbone)})
        return points


def first_above(curve: Sequence[dict], target: float) -> float | None:
    """Seconds of training until the target was first reached at the end of an epoch."""
    return next((point["seconds"] for point in curve if point["top1"] >= target), None)


def _decoded(source, size: int) -> Tensor:
    batches = evaluation_batches(source, np.arange(len(source)), size=size)
    return torch.cat([batch.pixels for batch in batches])
