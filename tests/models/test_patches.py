"""The patches of networks of several libraries, in the pass that gives their features."""

import pytest
import torch
from torch.nn.functional import normalize

from tinyseed.checkpoints.load import load_teacher
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.models.patches import PatchEncoder, count_patches, features_and_patches, gives_patches

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet10t", (4, 512)),
        ("torchvision/resnet18", (4, 512)),
        ("seed/mobilenetv3_large", (4, 960)),
        ("test_vit", (16, 64)),
    ],
)
def test_features_are_the_networks_own_and_patches_are_those_that_it_pools(name, shape):
    backbone = build_backbone(name, image_size=64, seed=0)
    network = backbone.network.eval()
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features, patches = features_and_patches(network, images)
    assert torch.equal(features, network(images))
    assert patches.shape == (3, *shape)
    if name in ("resnet10t", "torchvision/resnet18"):  # a mean is all that is between them
        torch.testing.assert_close(patches.mean(1), features, rtol=1e-4, atol=1e-5)
    assert count_patches(backbone) == shape[0]
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_cells_come_row_by_row():
    network = build_backbone("resnet10t", image_size=96, seed=0).network.eval()
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    maps = network.forward_features(images)
    patches = features_and_patches(network, images)[1]
    for row in range(3):
        for column in range(3):
            assert torch.equal(patches[0, 3 * row + column], maps[0, :, row, column])


def test_networks_whose_patches_are_not_known():
    backbone = build_backbone("torchvision/squeezenet1_1", image_size=64, seed=0)
    assert not gives_patches(backbone.network)
    assert count_patches(backbone) == 0


def test_counting_changes_nothing():
    backbone = build_backbone("resnet10t", image_size=64, seed=0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert count_patches(backbone) == 4
    assert backbone.network.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_a_patch_encoder_trains_backbone_and_head_in_one_pass():
    backbone = build_backbone("resnet10t", image_size=64, seed=0)
    encoder = Encoder(backbone, build_projector("mlp", backbone.width, 16, 32, seed=1))
    module = PatchEncoder(encoder)
    calls: list[int] = []
    backbone.network.conv1.register_forward_hook(lambda *_: calls.append(1))
    rows, patches = module(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert (rows.shape, patches.shape, len(calls)) == ((4, 16), (4, 4, 512), 1)
    torch.testing.assert_close(rows, normalize(rows, dim=1))
    (rows.square()[:, 0].sum() + patches.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_teacher_with_a_pooling_layer_gives_patches():
    teacher = load_teacher("torchvision/resnet18", weights="random", image_size=64)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = teacher.outputs(images, ("rows", "features", "patches"))
    torch.testing.assert_close(given["patches"].mean(1), given["features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given["rows"], teacher(images), rtol=1e-4, atol=1e-5)
