import pytest
import torch
from torch import nn

from tinyseed.detection.levels import feature_levels
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone

NAMES = (
    "resnet10t",
    "mobilenetv3_small_050",
    "efficientnet_lite0",
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
)


def stage_ends(backbone):
    """Modules that output the maps in a backbone's own forward pass, by the libraries' documentation."""
    network = backbone.network
    if backbone.name in ("resnet10t", "torchvision/resnet18"):
        return [network.layer1, network.layer2, network.layer3, network.layer4]
    if backbone.name == "mobilenetv3_small_050":
        return [network.blocks[stage] for stage in (0, 1, 3, 5)]
    if backbone.name == "efficientnet_lite0":
        return [network.blocks[stage] for stage in (1, 2, 4, 6)]
    return [network.features[stage] for stage in (1, 3, 8, 12)]


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_the_backbones_own_maps_with_its_own_weights(name):
    backbone = build_backbone(name, seed=3).eval()
    levels = feature_levels(backbone, norm="trained").eval()
    given, own = levels.network.state_dict(), backbone.network.state_dict()
    assert given.keys() == own.keys()
    assert all(torch.equal(given[key], own[key]) for key in own)
    assert all(
        given[key].data_ptr() != own[key].data_ptr() for key in own
    )  # the encoder itself is not trained
    images, seen = torch.randn(2, 3, 64, 96, generator=torch.manual_seed(0)), []
    for module in stage_ends(backbone):
        module.register_forward_hook(lambda module, given, made: seen.append(made.clone()))
    with torch.no_grad():
        backbone(images)
        maps = levels(images)
    assert [tuple(one.shape[2:]) for one in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [one.shape[1] for one in maps] == levels.channels
    for made, wanted in zip(maps, seen, strict=True):
        torch.testing.assert_close(made, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_vit", r"has no feature maps at stride 4, 8, 32 \(only at 16\); give a ResNet"),
        ("torchvision/shufflenet_v2_x0_5", "it has no stages"),
        ("mixer_s32_224", "has no feature maps to build a pyramid on"),
    ],
)
def test_backbones_without_levels_are_refused(name, message):
    with pytest.raises(InputError, match=message) as refused:
        feature_levels(build_backbone(name, seed=0), norm="frozen")
    assert str(refused.value).startswith(f"{name}: ")


def test_a_small_stem_has_no_coarse_levels():
    backbone = build_backbone("resnet18", small_stem=True, seed=0)
    with pytest.raises(InputError, match=r"at stride 16, 32 \(only at 1, 2, 4, 8\)"):
        feature_levels(backbone, norm="frozen")


@pytest.mark.parametrize("norm", ["frozen", "trained"])
def test_batch_norms_are_frozen_or_trained(norm):
    levels = feature_levels(build_backbone("resnet10t", seed=0), norm=norm)
    levels.train()
    before = {key: value.clone() for key, value in levels.network.state_dict().items()}
    parameters = [parameter for parameter in levels.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, 0.1)
    sum(one.square().mean() for one in levels(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    after = levels.network.state_dict()
    norms = {
        f"{name}.{key}"
        for name, module in levels.network.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in module.state_dict()
    }
    assert norms
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    if norm == "frozen":
        assert not changed & norms
    else:
        assert {key for key in norms if key.endswith(("running_mean", "running_var"))} <= changed
        assert "bn1.weight" in changed
    assert "conv1.0.weight" in changed
