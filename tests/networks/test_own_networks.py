"""`swav/NAME` and `seed/NAME` are backbones like any other."""

import pytest
import torch

from tinyseed.checkpoints.load import load_teacher
from tinyseed.checkpoints.saved import load_encoder, save_encoder
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.models.names import find_model, is_model_name
from tinyseed.networks.wide_resnet import WideResNet


@pytest.mark.parametrize(("name", "width"), [("swav/resnet50", 2048), ("seed/mobilenetv3_large", 1280)])
def test_they_are_built_saved_and_loaded(tmp_path, name, width):
    assert is_model_name(name)
    backbone = build_backbone(name, seed=0, image_size=32)
    assert (backbone.name, backbone.width, backbone.input.size) == (name, width, 32)
    encoder = Encoder(backbone, build_projector("mlp", width, 8, seed=0)).eval()
    save_encoder(tmp_path, encoder)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_encoder(tmp_path)(images), encoder(images))
    from importlib.metadata import version

    from safetensors import safe_open

    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["library"], metadata["library_version"]) == (name.partition("/")[0], version("tinyseed"))


def test_the_narrowest_is_torchvisions_resnet50():
    from torchvision import models

    theirs = models.resnet50()
    theirs.fc = torch.nn.Identity()
    ours = WideResNet(1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("width", [2, 4, 5])
def test_wide_ones_multiply_every_width(width):
    # ResNet-50 without its classifier has 23,508,032 parameters, of which the stem's convolution (9,408) and batch
    # norm (53,120) grow with the width, all others with its square.
    linear = 9_408 + 53_120
    parameters = width * linear + width**2 * (23_508_032 - linear)
    with torch.device("meta"):
        network = WideResNet(width).eval()
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 2048 * width)
    assert sum(value.numel() for value in network.parameters()) == parameters


def test_a_small_stem_keeps_the_size():
    backbone = build_backbone("swav/resnet50", small_stem=True, seed=0, image_size=32)
    assert backbone.network.conv1.stride == (1, 1)
    with pytest.raises(InputError, match="leave it out"):
        build_backbone("seed/mobilenetv3_large", small_stem=True, seed=0)


def test_without_a_file_they_have_no_weights():
    for name in ("swav/resnet50", "seed/mobilenetv3_large"):
        with pytest.raises(InputError, match="has no weights of its own"):
            load_teacher(name)
        assert load_teacher(name, weights="random", image_size=32).width == build_backbone(name, seed=0).width


def test_mistyped_names_are_suggested():
    for name, meant in {
        "swav/resnet50w3": "swav/resnet50w2",
        "seed/mobilenetv3": "seed/mobilenetv3_large",
    }.items():
        with pytest.raises(InputError, match="unknown model; did you mean") as caught:
            find_model(name)
        assert meant in str(caught.value)
