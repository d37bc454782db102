"""Weights that a network begins with: equal outputs after loading, and refusals that name what the file holds."""

import pytest
import timm
import torch
import torchvision

from tinyseed.checkpoints.initial import initialize
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector


def images(size=32, channels=3):
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))


def features(network, size=32, channels=3):
    with torch.no_grad():
        return network.eval()(images(size, channels))


def moved(backbone):
    """Batch norms with statistics that are not those of a new network."""
    backbone.train()(images(backbone.input.size, backbone.input.channels))
    return backbone


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet10t", {"small_stem": True}),
        ("mobilenetv3_small_050", {}),
        ("test_vit", {"image_size": 64}),
        ("torchvision/resnet18", {"channels": 4}),
    ],
)
def test_a_run_gives_its_backbone(tmp_path, name, build, what):
    given = moved(build_backbone(name, seed=1, **{"image_size": 32} | build))
    saved = save_encoder(tmp_path, Encoder(given, build_projector("mlp", given.width, 8, seed=1)))
    network = build_backbone(name, seed=2, **{"image_size": 32} | build)
    view = build.get("image_size", 32), build.get("channels", 3)
    assert not torch.equal(features(network, *view), features(given, *view))
    network.train()
    initialize(network, str(tmp_path if what == "folder" else saved))
    assert network.training
    assert torch.equal(features(network, *view), features(given, *view))


@pytest.mark.parametrize(
    ("student", "build"), [("resnet18", {}), ("torchvision/resnet18", {}), ("resnet18", {"small_stem": True})]
)
def test_a_plain_checkpoint_gives_its_network(tmp_path, student, build):
    whole = timm.create_model("resnet18", num_classes=7) if build else torchvision.models.resnet18()
    if build:
        whole.conv1, whole.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    torch.save({"epoch": 3, "state_dict": whole.state_dict()}, tmp_path / "a.pth")
    network = build_backbone(student, seed=0, image_size=32, **build)
    initialize(network, str(tmp_path / "a.pth"))
    whole.fc = torch.nn.Identity()
    torch.testing.assert_close(features(network), features(whole), rtol=1e-5, atol=1e-5)


def test_the_encoder_of_a_public_format_and_a_part_of_a_file(tmp_path):
    query, key = (build_backbone("torchvision/resnet18", seed=seed).network.state_dict() for seed in (1, 2))
    heads = {"fc.weight": torch.zeros(128, 512), "fc.bias": torch.zeros(128)}
    state = {f"module.encoder_q.{name}": value for name, value in (query | heads).items()}
    state |= {f"module.encoder_k.{name}": value for name, value in (key | heads).items()}
    torch.save({"state_dict": state | {"module.queue": torch.zeros(128, 64)}}, tmp_path / "moco.pth.tar")
    network = build_backbone("resnet18", seed=0)
    for prefix, wanted in ((None, query), ("encoder_k", key)):
        initialize(network, str(tmp_path / "moco.pth.tar"), prefix)
        found = network.network.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())


def test_a_file_that_several_architectures_could_have_is_that_of_the_network(tmp_path):
    """EfficientNets of the same tensors differ in how they pad."""
    given = build_backbone("tf_efficientnet_b0", seed=1, image_size=32)
    torch.save(given.network.state_dict(), tmp_path / "a.pth")
    for name, same in (("tf_efficientnet_b0", True), ("efficientnet_b0", False)):
        network = build_backbone(name, seed=0, image_size=32)
        initialize(network, str(tmp_path / "a.pth"))
        assert torch.equal(features(network), features(given)) == same


def refusal(network, weights, prefix=None):
    before = {name: value.clone() for name, value in network.network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        initialize(network, str(weights), prefix)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in network.network.state_dict().items())
    return str(caught.value)


def test_weights_of_other_architectures_are_refused(tmp_path):
    network = build_backbone("resnet10t", seed=0, image_size=32)
    save_encoder(tmp_path / "run", Encoder(build_backbone("resnet18", seed=0)))
    told = refusal(network, tmp_path / "run")
    assert told == (
        f"{tmp_path / 'run'}: holds weights of resnet18, not of resnet10t; give weights of that, or `arch` resnet18"
    )
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "a.pth")
    assert "holds weights of torchvision/resnet18, not of resnet10t" in refusal(network, tmp_path / "a.pth")
    broken = torchvision.models.resnet18().state_dict()
    del broken["layer1.0.conv1.weight"]
    torch.save(broken, tmp_path / "b.pth")
    assert "nearest is torchvision/resnet18: 1 missing (layer1.0.conv1.weight)" in refusal(
        network, tmp_path / "b.pth"
    )
    save_encoder(tmp_path / "small", Encoder(build_backbone("resnet10t", small_stem=True, seed=0)))
    assert "holds weights of" in refusal(build_backbone("resnet18", seed=0), tmp_path / "small")
    assert "no such file or folder" in refusal(network, tmp_path / "gone.pth")
    assert "has no tensors of this prefix" in refusal(network, tmp_path / "a.pth", "encoder_q")


def test_the_same_network_built_otherwise_is_refused(tmp_path):
    save_encoder(tmp_path / "large", Encoder(build_backbone("resnet18", seed=0)))
    small = build_backbone("resnet18", small_stem=True, seed=0)
    told = refusal(small, tmp_path / "large")
    assert "does not fit resnet18 as it is built here, nothing was loaded: 1 mis-shaped (conv1.weight" in told


def test_networks_that_compute_something_else_from_the_same_tensors_are_refused(tmp_path):
    save_encoder(tmp_path / "run", Encoder(build_backbone("tf_efficientnet_b0", seed=1)))
    network = build_backbone("efficientnet_b0", seed=0)
    with pytest.raises(InputError, match="holds weights of tf_efficientnet_b0, not of efficientnet_b0"):
        initialize(network, str(tmp_path / "run"))
