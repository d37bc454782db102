"""SimCLR in PyTorch, by four authors: official weights converted, and trainings of their own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "size": 224}


def official(state):
    """Tensors in the order of the converter's own ResNet, whose blocks begin with their shortcut."""

    def place(name):
        layer, _, rest = name.partition(".")
        block, _, rest = rest.partition(".")
        return (layer, block, not rest.startswith("downsample")) if layer.startswith("layer") else ()

    layers = [name for name in state if name.startswith("layer")]
    layers.sort(key=place)
    first = [name for name in state if name.startswith(("conv1", "bn1"))]
    return {
        name: state[name] for name in [*first, *layers, *(name for name in state if name.startswith("fc"))]
    }


def test_official_weights_converted_by_tonylins(settled, noise, published, refused):
    """simclr-converter, convert.py and resnet_wider.py; eval.py resizes images and does not normalize them."""
    from torchvision.models import resnet50

    network = settled(resnet50())
    state = official(network.state_dict())
    network.fc = nn.Identity()
    with torch.no_grad():
        features = network(noise(64))
    _, described = published(
        {"state_dict": state},
        noise(64),
        features,
        method="SimCLR (converted by tonylins)",
        architecture="torchvision/resnet50",
        interpolation="bicubic",
        **UNIT,
    )
    assert described.unused == {"classifier": 2}
    refused(lambda damaged: {"state_dict": damaged}, state, "layer3.1.conv2.weight")


def test_the_same_tensors_in_torchvision_s_order_are_torchvision_s(settled, noise, published):
    from torchvision.models import resnet50

    network = settled(resnet50())
    state = network.state_dict()
    network.fc = nn.Identity()
    with torch.no_grad():
        features = network(noise(64))
    published(
        {"state_dict": state},
        noise(64),
        features,
        method="state dict",
        mean=(0.485, 0.456, 0.406),
        architecture="torchvision/resnet50",
    )


class Stage(nn.Module):
    """One of Separius' stages: `blocks.N.net` and, in the first, `blocks.0.projection`."""

    def __init__(self, depth, inputs, outputs, stride):
        super().__init__()
        self.blocks = nn.ModuleList()
        for number in range(depth):
            self.blocks.append(
                bottleneck(4 * outputs if number else inputs, outputs, 1 if number else stride, not number)
            )

    def forward(self, x):
        for block in self.blocks:
            shortcut = (
                block.projection.bn(block.projection.shortcut(x)) if hasattr(block, "projection") else x
            )
            x = F.relu(shortcut + block.net(x))
        return x


def normed(channels, relu=True):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU() if relu else nn.Identity())


def bottleneck(inputs, outputs, stride, projected):
    def conv(before, after, kernel, step=1):
        return nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)

    block = nn.Module()
    if projected:
        block.projection = nn.Module()
        block.projection.shortcut = conv(inputs, 4 * outputs, 1, stride)
        block.projection.bn = normed(4 * outputs, relu=False)
    block.net = nn.Sequential(
        conv(inputs, outputs, 1),
        normed(outputs),
        conv(outputs, outputs, 3, stride),
        normed(outputs),
        conv(outputs, 4 * outputs, 1),
        normed(4 * outputs, relu=False),
    )
    return block


def separius():
    """SimCLRv2-Pytorch, resnet.py: r50_1x_sk0, and its contrastive head of three layers."""
    resnet, head = nn.Module(), nn.Module()
    stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), normed(64), nn.MaxPool2d(3, 2, 1))
    stages = [(3, 64, 64, 1), (4, 256, 128, 2), (6, 512, 256, 2), (3, 1024, 512, 2)]
    resnet.net = nn.Sequential(stem, *(Stage(*stage) for stage in stages))
    resnet.fc = nn.Linear(2048, 1000)
    layers = []
    for outputs in (2048, 2048, 128):
        layers += [nn.Linear(2048, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    head.layers = nn.ModuleList(layers[:-1])
    return resnet, head


@pytest.mark.slow
def test_official_weights_of_the_second_version_converted_by_separius(settled, noise, published, refused):
    resnet, head = map(settled, separius())
    with torch.no_grad():
        features = resnet.net(noise(64)).mean(dim=(2, 3))
        projected = nn.Sequential(*head.layers)(features)

    def file(state):
        return {"resnet": state, "head": head.state_dict()}

    encoder, described = published(
        file(resnet.state_dict()),
        noise(64),
        features,
        projected,
        method="SimCLR v2 (converted by Separius)",
        architecture="torchvision/resnet50",
        interpolation="bicubic",
        **UNIT,
    )
    assert described.dim == 128
    assert described.unused == {"classifier": 2}
    assert len(encoder.projector) == 8
    refused(file, resnet.state_dict(), "net.2.blocks.1.net.2.weight")
    refused(
        lambda damaged: {"resnet": resnet.state_dict(), "head": damaged}, head.state_dict(), "layers.3.weight"
    )


def test_selective_kernels_are_refused_with_their_reason(settled, saved):
    """r50_1x_sk1: no library here has such a network."""
    from tinyseed.checkpoints.public import load_file
    from tinyseed.errors import InputError
    from tinyseed.models.spec import ModelSpec

    resnet, head = map(settled, separius())
    state = resnet.state_dict()
    state["net.1.blocks.0.net.2.main_conv.0.weight"] = torch.ones(128, 64, 3, 3)
    path = saved({"resnet": state, "head": head.state_dict()})
    with pytest.raises(InputError, match="selective kernels") as caught:
        load_file(path, ModelSpec(path))
    assert "\n" not in str(caught.value)


def test_spijkervet(resnet, settled, noise, published, refused):
    """SimCLR, simclr/simclr.py: a projector without biases; images in [0, 1] without mean and std."""
    model = nn.Module()
    model.encoder = resnet()
    model.projector = nn.Sequential(
        nn.Linear(512, 512, bias=False), nn.ReLU(), nn.Linear(512, 64, bias=False)
    )
    settled(model)
    with torch.no_grad():
        features = model.encoder(noise(64))
        projected = model.projector(features)
    expected = {"method": "SimCLR (Spijkervet)", "architecture": "torchvision/resnet18", **UNIT}
    _, described = published(model.state_dict(), noise(64), features, projected, **expected)
    assert not described.unused
    refused(dict, model.state_dict(), "projector.2.weight")
    # Trained with Lightning, whose module holds the encoder and, as `model`, the encoder and the projector.
    names = {f"model.{name}": value for name, value in model.state_dict().items()}
    state = {**{f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}, **names}
    published({"epoch": 9, "state_dict": state}, noise(64), features, projected, **expected)


def test_sthalles(resnet, settled, noise, published, refused):
    """SimCLR, models/resnet_simclr.py: the ResNet's last layer is the head; images in [0, 1] without mean and std."""
    model = nn.Module()
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
    model.backbone = resnet(head)
    settled(model)
    state = model.state_dict()
    model.backbone.fc = nn.Identity()
    with torch.no_grad():
        features = model.backbone(noise(64))
        projected = head(features)

    def file(state):
        return {
            "epoch": 200,
            "arch": "resnet18",
            "state_dict": state,
            "optimizer": {"state": {}, "param_groups": []},
        }

    published(file(state), noise(64), features, projected, method="SimCLR (sthalles)", epochs=200, **UNIT)
    refused(file, state, "backbone.fc.2.weight")
