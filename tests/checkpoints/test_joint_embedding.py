"""SimSiam, Barlow Twins, VICReg, VICRegL, BYOL and MoCo v3: backbone, projector, and what lies beside them."""

from itertools import pairwise

import pytest
import torch
from torch import nn

IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "size": 224,
    "interpolation": "bilinear",
}
RESNET18 = {"architecture": "torchvision/resnet18", **IMAGENET}
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def parallel(state):
    return {f"module.{name}": value for name, value in state.items()}


def training_file(state):
    """As the training scripts derived from PyTorch's ImageNet example save it."""
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.05}]}
    return {"epoch": 100, "arch": "resnet18", "state_dict": parallel(state), "optimizer": optimizer}


def model_file(state):
    """As Barlow Twins and VICReg save it."""
    optimizer = {"state": {0: {"mu": torch.ones(3)}}, "param_groups": [{"lr": 0.05}]}
    return {"epoch": 300, "model": parallel(state), "optimizer": optimizer}


def with_batch_norm(*widths, bias=True, last_bias=False):
    """Linear layers with batch norm and ReLU between them."""
    layers = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=last_bias))


def computed(network, projector, images):
    """What the authors' code gives: features, and the projector's output."""
    with torch.no_grad():
        features = network(images)
        return features, projector(features)


def simsiam(resnet):
    """simsiam/builder.py: the projector is the ResNet's `fc`, its last batch norm without scale and shift."""
    fc = with_batch_norm(512, 512, 512, 2048, bias=False, last_bias=True)
    model = nn.Module()
    model.encoder = resnet(nn.Sequential(*fc, nn.BatchNorm1d(2048, affine=False)))
    model.predictor = with_batch_norm(2048, 512, 2048, bias=False, last_bias=True)
    return model


def test_simsiam(resnet, settled, noise, published, refused):
    model = settled(simsiam(resnet))
    projector, model.encoder.fc = model.encoder.fc, nn.Identity()
    features, projected = computed(model.encoder, projector, noise(64))
    model.encoder.fc = projector
    encoder, described = published(
        training_file(model.state_dict()),
        noise(64),
        features,
        projected,
        method="SimSiam",
        epochs=100,
        **RESNET18,
    )
    assert described.dim == 2048
    assert described.unused == {"predictor": 8, "optimizer": 1}
    assert not encoder.projector[-1].affine
    refused(training_file, model.state_dict(), "encoder.fc.3.weight")


def barlow_twins(resnet):
    """main.py: a projector without biases, and the loss' batch norm without scale and shift."""
    model = nn.Module()
    model.backbone = resnet()
    model.projector = with_batch_norm(512, 1024, 1024, 1024, bias=False)
    model.bn = nn.BatchNorm1d(1024, affine=False)
    return model


def test_barlow_twins(resnet, settled, noise, published, refused):
    model = settled(barlow_twins(resnet))
    features, projected = computed(model.backbone, model.projector, noise(64))
    _, described = published(
        model_file(model.state_dict()),
        noise(64),
        features,
        projected,
        method="Barlow Twins",
        epochs=300,
        **RESNET18,
    )
    assert described.dim == 1024
    assert described.unused == {"bn": 3, "optimizer": 1}
    refused(model_file, model.state_dict(), "projector.6.weight")
    refused(model_file, model.state_dict(), "backbone.layer2.0.conv1.weight")


def vicreg(resnet):
    """main_vicreg.py: biases in all layers but the last."""
    model = nn.Module()
    model.backbone = resnet()
    model.projector = with_batch_norm(512, 1024, 1024, 1024)
    return model


def test_vicreg(resnet, settled, noise, published, refused):
    model = settled(vicreg(resnet))
    features, projected = computed(model.backbone, model.projector, noise(64))
    _, described = published(
        model_file(model.state_dict()), noise(64), features, projected, method="VICReg", **RESNET18
    )
    assert described.unused == {"optimizer": 1}
    refused(model_file, model.state_dict(), "projector.4.running_var")


def test_vicregl(resnet, settled, noise, published, refused):
    """main_vicregl.py: a projector of maps and a classifier beside VICReg's."""
    model = vicreg(resnet)
    model.maps_projector = with_batch_norm(512, 64, 64, 64)
    model.classifier = nn.Linear(512, 1000)
    settled(model)
    features, projected = computed(model.backbone, model.projector, noise(64))
    _, described = published(
        model_file(model.state_dict()), noise(64), features, projected, method="VICRegL", **RESNET18
    )
    assert described.unused == {"maps_projector": 15, "classifier": 2, "optimizer": 1}
    refused(model_file, model.state_dict(), "projector.0.weight")


def projector_and_predictor(last_bn):
    """moco/builder.py: no biases; the last batch norm without scale and shift."""
    layers = [*with_batch_norm(512, 1024, 256, bias=False), nn.BatchNorm1d(256, affine=False)]
    return nn.Sequential(*(layers if last_bn else layers[:-1]))


def test_moco_v3_of_a_resnet(resnet, settled, noise, published, refused):
    model = nn.Module()
    model.base_encoder = resnet(projector_and_predictor(last_bn=True))
    model.momentum_encoder = resnet(projector_and_predictor(last_bn=True))
    model.predictor = with_batch_norm(256, 1024, 256, bias=False)
    settled(model)
    projector, model.base_encoder.fc = model.base_encoder.fc, nn.Identity()
    features, projected = computed(model.base_encoder, projector, noise(64))
    model.base_encoder.fc = projector

    def file(state):
        scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7}
        return {**training_file(state), "scaler": scaler}

    encoder, described = published(
        file(model.state_dict()), noise(64), features, projected, method="MoCo v3", **RESNET18
    )
    assert described.dim == 256
    assert described.unused.keys() == {"momentum_encoder", "predictor", "optimizer"}
    assert not encoder.projector[-1].affine
    refused(file, model.state_dict(), "base_encoder.fc.4.running_mean")


def byol_head(inputs):
    return with_batch_norm(inputs, 1024, 256, last_bias=True)


class Listed(nn.Module):
    """A ResNet as a list of its layers without the last: `0` is its first convolution, `4` its first stage."""

    def __init__(self, resnet):
        super().__init__()
        self.encoder = nn.Sequential(*list(resnet().children())[:-1])


def test_byol_of_a_listed_resnet(resnet, settled, noise, published, refused):
    """sthalles/PyTorch-BYOL, trainer.py: online and target networks as entries, `projetion` as it is spelled there."""
    online, target = Listed(resnet), Listed(resnet)
    for network in (online, target):
        network.projetion = nn.Module()
        network.projetion.net = byol_head(512)
    settled(online)
    settled(target, seed=1)
    features, projected = computed(lambda x: online.encoder(x).flatten(1), online.projetion.net, noise(64))

    def file(state):
        return {
            "online_network_state_dict": state,
            "target_network_state_dict": target.state_dict(),
            "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        }

    _, described = published(
        file(online.state_dict()), noise(64), features, projected, method="BYOL (sthalles)", **RESNET18 | UNIT
    )
    assert described.unused == {"target_network_state_dict": len(target.state_dict()), "optimizer": 1}
    refused(file, online.state_dict(), "projetion.net.3.weight")


def test_byol_with_named_layers(resnet, settled, noise, published, refused):
    """yaox12/BYOL-PyTorch, model/basic_modules.py: the projection's layers have names."""

    def named(inputs):
        head = nn.Module()
        head.l1, head.bn1, _, head.l2 = byol_head(inputs)
        return head

    model = nn.Module()
    model.online_network, model.target_network = Listed(resnet), Listed(resnet)
    model.online_network.projetion, model.target_network.projetion = named(512), named(512)
    model.predictor = nn.Module()
    model.predictor.predictor = named(256)
    settled(model)
    head = model.online_network.projetion
    features, projected = computed(
        lambda x: model.online_network.encoder(x).flatten(1),
        lambda rows: head.l2(torch.relu(head.bn1(head.l1(rows)))),
        noise(64),
    )

    def file(state):
        return {
            "config": {"model": {"backbone": {"type": "resnet18"}}},
            "epoch": 300,
            "steps": 1000,
            "model": parallel(state),
            "optimizer": {"state": {}, "param_groups": []},
            "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}},
        }

    _, described = published(
        file(model.state_dict()), noise(64), features, projected, method="BYOL (yaox12)", **RESNET18
    )
    assert described.unused.keys() == {"target_network", "predictor"}
    refused(file, model.state_dict(), "online_network.projetion.l2.weight")


def lucidrains(resnet, fc):
    """byol_pytorch.py: the network itself, the same again in the online encoder, and a copy in the target encoder."""
    net = resnet(fc)
    model = nn.Module()
    model.net = net
    model.online_encoder, model.target_encoder = nn.Module(), nn.Module()
    model.online_encoder.net, model.online_encoder.projector = net, byol_head(512)
    model.target_encoder.net, model.target_encoder.projector = resnet(fc), byol_head(512)
    model.online_predictor = byol_head(256)
    return model


def test_byol_around_a_network(resnet, settled, noise, published, refused):
    model = settled(lucidrains(resnet, nn.Linear(512, 1000)))
    state = model.state_dict()
    model.net.fc = nn.Identity()
    features, projected = computed(model.net, model.online_encoder.projector, noise(64))
    _, described = published(state, noise(64), features, projected, method="BYOL (lucidrains)", **RESNET18)
    assert described.unused.keys() == {"net", "target_encoder", "online_predictor", "classifier"}
    refused(dict, state, "online_encoder.projector.3.weight")


def test_byol_s_network_alone_is_a_state_dict(resnet, settled, noise, published):
    """What its README saves after training."""
    network = settled(resnet(nn.Linear(512, 1000)))
    state = network.state_dict()
    network.fc = nn.Identity()
    with torch.no_grad():
        features = network(noise(64))
    published(state, noise(64), features, method="state dict", architecture="torchvision/resnet18")


def test_a_converted_byol_network_pads_as_its_authors_do(settled, saved):
    """chigur/byol-convert: torchvision's names, but convolutions and pooling pad as TensorFlow's SAME does.

    Torchvision's network would give other features; the file shows whose it is by its statistics, which all follow
    the weights, and by the counters that it lacks.
    """
    from torchvision.models import resnet50

    from tinyseed.checkpoints.public import load_file
    from tinyseed.errors import InputError
    from tinyseed.models.spec import ModelSpec

    state = settled(resnet50()).state_dict()
    weights = {name: value for name, value in state.items() if name.endswith(("weight", "bias"))}
    statistics = {
        name: value for name, value in state.items() if name.endswith(("running_mean", "running_var"))
    }
    path = saved(weights | statistics)
    with pytest.raises(InputError, match=r"BYOL.*pads") as caught:
        load_file(path, ModelSpec(path))
    assert "\n" not in str(caught.value)
