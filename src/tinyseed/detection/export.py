"""Writes the backbone of a plain ResNet under Detectron2's names, for the C4 recipe of the SEED paper."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tinyseed.errors import InputError
from tinyseed.files import replacing
from tinyseed.models.encoder import Encoder
from tinyseed.models.names import import_timm

_PLAIN = re.compile(
    r"(?:(?:conv|bn)1|layer[1-4]\.\d+\.(?:(?:conv|bn)[123]|downsample\.[01]))"
    r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked)"
)


def export_detectron2(encoder: Encoder, path: str | Path) -> Path:
    """Write a ResNet backbone under Detectron2's names: a pickle of float32 NumPy arrays, read by its checkpointer.

    For Detectron2's configuration: RGB input, the encoder's mean and std times 255, STRIDE_IN_1X1 False.

    Args:
        encoder: with a plain ResNet of timm or torchvision: basic or bottleneck blocks, 7×7 stem.
        path: a .pkl file; written atomically.

    Returns:
        The file.

    Raises:
        InputError: another network, or a path that does not end in .pkl.
        RunError: it could not be written.

    Source: the names are those of detectron2/modeling/backbone/resnet.py; the file format is the one that MoCo's
    detection/convert-pretrain-to-detectron2.py documents.
    """
    path = Path(path)
    if path.suffix != ".pkl":
        remedy = "give a file name that ends in .pkl, by which Detectron2 recognizes the format"
        raise InputError(path, remedy)
    network = encoder.backbone.network
    _require_plain_resnet(network, encoder.backbone.name)
    model = {
        detectron2_name(name): value.detach().cpu().float().numpy().astype(np.float32)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    with replacing(path) as unfinished:
        unfinished.write_bytes(
            pickle.dumps({"model": model, "__author__": "tinyseed", "matching_heuristics": True})
        )
    return path


def detectron2_name(name: str) -> str:
    """Detectron2's name for a tensor of a timm or torchvision ResNet.

    >>> detectron2_name("bn1.weight"), detectron2_name("layer1.0.downsample.1.bias")
    ('stem.conv1.norm.weight', 'res2.0.shortcut.norm.bias')
    """
    name = f"res{int(name[5]) + 1}{name[6:]}" if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _require_plain_resnet(network: Any, name: str) -> None:  # noqa: ANN401  (either library's)
    import_timm()
    from timm.models.resnet import ResNet as TimmResNet
    from torchvision.models.resnet import ResNet

    why = "not a ResNet of plain basic or bottleneck blocks, the only kind that Detectron2 has names for"
    if not isinstance(network, TimmResNet | ResNet):
        raise InputError(name, why)
    unknown = [key for key in network.state_dict() if not _PLAIN.fullmatch(key)]
    if unknown:
        raise InputError(name, f"{why} ({unknown[0]})")
    stem: Any = network.conv1
    if stem.kernel_size != (7, 7) or isinstance(network.maxpool, nn.Identity):
        raise InputError(name, "has a small stem, which Detectron2's ResNet does not have")
    for block in network.modules():
        antialiasing = getattr(block, "aa", None)
        activation = getattr(block, "act1", None) or getattr(block, "relu", None)
        if not isinstance(antialiasing, nn.Identity | None) or not isinstance(activation, nn.ReLU | None):
            raise InputError(name, f"{why} (it has other activations, or antialiases before it strides)")
