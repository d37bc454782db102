"""Networks for images of other channels than red, green and blue."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from tinyseed.checkpoints.load import load_teacher
from tinyseed.checkpoints.saved import load_encoder, save_encoder
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder
from tinyseed.models.folding import fold_batch_norm


def images(channels: int, size: int = 32) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "test_vit", "convnext_atto"])
@pytest.mark.parametrize("channels", [1, 4, 10])
def test_timm_loads_the_network_and_sees_the_same(name, channels):
    backbone = build_backbone(name, channels=channels, seed=1, image_size=32).eval()
    sizes = {"img_size": 32} if name == "test_vit" else {}
    plain = timm.create_model(name, num_classes=0, in_chans=channels, **sizes).eval()
    plain.load_state_dict(backbone.network.state_dict(), strict=True)
    assert torch.equal(backbone(images(channels)), plain(images(channels)))
    assert backbone.build.channels == backbone.input.channels == channels


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "efficientnet_b0"])
def test_torchvisions_first_convolution_alone_changes(name):
    backbone = build_backbone(f"torchvision/{name}", channels=4, seed=1, image_size=32).eval()
    assert backbone(images(4)).shape == (2, backbone.width)
    plain = torchvision.models.get_model(name).state_dict()
    changed = {
        key: tuple(value.shape)
        for key, value in backbone.network.state_dict().items()
        if value.shape != plain[key].shape
    }
    ((key, shape),) = changed.items()
    assert key == next(name for name, value in plain.items() if value.ndim == 4)
    assert shape == (plain[key].shape[0], 4, *plain[key].shape[2:])


@pytest.mark.parametrize("channels", [1, 12])
def test_torchvisions_own_initialization_is_drawn(channels):
    """ResNet: normal, variance 2 / (outputs · 49); ViT: truncated normal, variance 1 / (channels · 16²)."""
    resnet = build_backbone(
        "torchvision/resnet18", channels=channels, seed=0, image_size=32
    ).network.conv1.weight
    assert float(resnet.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.05)
    vit = build_backbone(
        "torchvision/vit_b_16", channels=channels, seed=0, image_size=32
    ).network.conv_proj.weight
    assert float(vit.detach().std()) == pytest.approx(math.sqrt(1 / (channels * 256)), rel=0.05)
    assert nn.Conv2d(3, 4, 1).in_channels == 3  # the library's class is as it was


def test_three_channels_are_the_librarys_own_network():
    for name in ("resnet10t", "torchvision/mobilenet_v3_small"):
        one, other = (
            build_backbone(name, seed=5, image_size=32, **settings) for settings in ({}, {"channels": 3})
        )
        assert one.input == other.input
        for key, value in one.network.state_dict().items():
            assert torch.equal(value, other.network.state_dict()[key])


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_the_small_stem_takes_the_channels(name):
    backbone = build_backbone(name, channels=4, small_stem=True, seed=0, image_size=16)
    assert backbone.network.conv1.weight.shape == (64, 4, 3, 3)
    assert backbone.eval()(images(4, 16)).shape == (2, 512)


def test_batch_norm_folds_and_sees_the_same():
    network = build_backbone("resnet10t", channels=4, seed=2, image_size=32).network.eval()
    folded = fold_batch_norm(network, 32, 4)
    assert folded is not network
    torch.testing.assert_close(folded(images(4)), network(images(4)), rtol=1e-4, atol=1e-4)


@pytest.fixture
def saved(tmp_path):
    backbone = build_backbone("mobilenetv3_small_050", channels=4, seed=3, image_size=32)
    contract = replace(
        backbone.input, mean=(0.1, 0.2, 0.3, 0.45), std=(1.0, 0.5, 0.25, 0.1), pixel_range=(0.0, 10000.5)
    )
    encoder = Encoder(backbone).with_input(contract).eval()
    save_encoder(tmp_path, encoder)
    return tmp_path, encoder


def test_a_saved_encoder_is_restored_with_its_channels(saved):
    folder, encoder = saved
    loaded = load_encoder(folder)
    assert loaded.input == encoder.input
    assert torch.equal(loaded.features(images(4)), encoder.features(images(4)))
    plain = timm.create_model("mobilenetv3_small_050", num_classes=0, in_chans=4).eval()
    plain.load_state_dict(load_file(folder / "student.safetensors"), strict=True)
    assert torch.equal(plain(images(4)), encoder.features(images(4)))
    teacher = load_teacher(folder, image_size=64)
    assert teacher.input == replace(encoder.input, size=64)
    torch.testing.assert_close(teacher.features(images(4)), encoder.features(images(4)), rtol=1e-3, atol=1e-4)


def test_metadata_that_contradict_themselves_are_reported(saved):
    folder, encoder = saved
    save_encoder(folder, encoder.with_input(replace(encoder.input, std=(1.0, 1.0))))
    with pytest.raises(InputError, match="was not written by tinyseed"):
        load_encoder(folder)
