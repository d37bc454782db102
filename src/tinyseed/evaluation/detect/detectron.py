"""A ResNet trunk with Detectron2's names, for the paper's C4 recipe. Imports models and errors."""

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
_FIELD = "--export-detectron2"


def export_detectron2(encoder: Encoder, path: str | Path) -> Path:
    """Write a ResNet's trunk as Detectron2 names it, a pickle of float32 NumPy arrays that its checkpointer reads.

    For Detectron2's configuration: RGB input, the encoder's mean and std times 255, STRIDE_IN_1X1 False.

    Args:
        encoder: with a plain ResNet of timm or torchvision: basic or bottleneck blocks, 7×7 stem.
        path: a .pkl file; written whole or not at all.

    Returns:
        The file.

    Raises:
        InputError: another network, or a path that is no .pkl.
        RunError: it could not be written.

    Source: the names are those of detectron2/modeling/backbone/resnet.py; the file's form is what MoCo's
    detection/convert-pretrain-to-detectron2.py documents.
    """
    path = Path(path)
    if path.suffix != ".pkl":
        raise InputError(
            _FIELD, path, "give a file name that ends in .pkl, by which Detectron2 knows the form"
        )
    network = encoder.backbone.network
    _refuse(network, encoder.backbone.name)
    model = {
        detectron2_name(name): value.detach().cpu().float().numpy().astype(np.float32)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    content = {"model": model, "__author__": "tinyseed", "matching_heuristics": True}
    with replacing(path) as unfinished:
        unfinished.write_bytes(pickle.dumps(content))
    return path


def detectron2_name(name: str) -> str:
    """A tensor of timm's or torchvision's ResNet as Detectron2 calls it.

    >>> detectron2_name("bn1.weight"), detectron2_name("layer1.0.downsample.1.bias")
    ('stem.conv1.norm.weight', 'res2.0.shortcut.norm.bias')
    """
    name = f"res{int(name[5]) + 1}{name[6:]}" if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def _refuse(network: Any, name: str) -> None:  # noqa: ANN401  (either library's)
    import_timm()
    from timm.models.resnet import ResNet as TimmResNet
    from torchvision.models.resnet import ResNet

    what = "is no ResNet of plain basic or bottleneck blocks, which is what Detectron2's names are for"
    if not isinstance(network, TimmResNet | ResNet):
        raise InputError(_FIELD, name, what)
    strange = [key for key in network.state_dict() if not _PLAIN.fullmatch(key)]
    if strange:
        raise InputError(_FIELD, name, f"{what} ({strange[0]})")
    stem: Any = network.conv1
    if stem.kernel_size != (7, 7) or isinstance(network.maxpool, nn.Identity):
        raise InputError(_FIELD, name, "has a small stem, which Detectron2's ResNet has not")
    for block in network.modules():
        smoothed = getattr(block, "aa", None)
        activation = getattr(block, "act1", None) or getattr(block, "relu", None)
        if not isinstance(smoothed, nn.Identity | None) or not isinstance(activation, nn.ReLU | None):
            raise InputError(_FIELD, name, f"{what} (it has other activations, or smooths before it strides)")
