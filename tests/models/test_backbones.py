import numpy as np
import pytest
import timm
import torch
import torchvision

from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone
from tinyseed.models.contract import InputContract


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 512),
        ("timm/resnet10t", 512),
        ("resnet18.a1_in1k", 512),
        ("mobilenetv3_small_050", 1024),
        ("mobilenetv3_large_100", 1280),
        ("torchvision/resnet18", 512),
        ("torchvision/mobilenet_v3_small", 1024),
    ],
)
def test_width_is_that_of_the_output(name, width):
    backbone = build_backbone(name, image_size=32, seed=0)
    assert backbone.width == width
    assert backbone.eval()(images(32)).shape == (2, width)
    assert backbone.library == ("torchvision" if "torchvision" in name else "timm")
    assert backbone.name == name.removeprefix("timm/")


def test_the_librarys_own_num_features_would_be_wrong():
    assert timm.create_model("mobilenetv3_large_100", num_classes=0).num_features == 960


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_vit"])
def test_timm_loads_the_network_strictly_and_sees_the_same(name):
    backbone = build_backbone(name, seed=3, image_size=160 if name == "test_vit" else 64).eval()
    plain = timm.create_model(name, num_classes=0).eval()
    plain.load_state_dict(backbone.network.state_dict(), strict=True)
    batch = images(160 if name == "test_vit" else 64)
    assert torch.equal(backbone(batch), plain(batch))


QUICK = (
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "squeezenet1_1",
)
SLOW = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_v2_s",
    "maxvit_t",
    "regnet_x_400mf",
    "resnext50_32x4d",
)
SLOW += ("shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg11", "vit_b_16")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_torchvision_features_are_what_its_classifier_is_given(name):
    size = 224 if name == "maxvit_t" else 64
    backbone = build_backbone(f"torchvision/{name}", seed=0, image_size=size).eval()
    kwargs = {"image_size": size} if name.startswith("vit") else {}
    whole = torchvision.models.get_model(name, **kwargs).eval()
    classifier = [
        module for module in whole.modules() if getattr(module, "weight", torch.zeros(1)).shape[0] == 1000
    ]
    state = whole.state_dict() | backbone.network.state_dict()  # the classifier's own stay
    whole.load_state_dict(state, strict=True)
    seen = []
    classifier[-1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    batch = images(size)
    with torch.no_grad():
        whole(batch)
        features = backbone(batch)
    wanted = seen[0].relu().mean(dim=(2, 3)) if "squeezenet" in name else seen[0]
    torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-6)
    left_out = set(whole.state_dict()) - set(backbone.network.state_dict())
    assert {key.rpartition(".")[2] for key in left_out} <= {"weight", "bias"}
    assert 1 <= len(left_out) <= 2


def test_nothing_is_dropped_out_of_torchvision_features():
    backbone = build_backbone("torchvision/mobilenet_v2", image_size=32, seed=0)
    last = list(backbone.network.children())[-1]
    assert torch.equal(last.train()(torch.ones(4, 7)), torch.ones(4, 7))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet10t", "torchvision/resnet18", "test_resnet", "seresnet18"]
)
def test_small_stem_keeps_maps_large(name):
    sizes = {}
    for small in (False, True):
        network = build_backbone(name, small_stem=small, image_size=64, seed=0).eval().network
        network.layer1.register_forward_hook(
            lambda module, inputs, output, small=small: sizes.update({small: inputs[0]})
        )
        network.layer4.register_forward_hook(
            lambda module, inputs, output, small=small: sizes.update({(small, "last"): output})
        )
        network(images(64))
    assert sizes[True].shape[2:] == (64, 64)
    assert sizes[False].shape[2:] == (16, 16)
    assert sizes[True, "last"].shape[2:] == (8, 8)
    assert sizes[False, "last"].shape[2:] == (2, 2)


def test_small_stem_is_initialized_as_the_library_does():
    """Kaiming's fan-out: variance 2 ÷ (outputs × kernel area)."""
    weight = build_backbone("resnet18", small_stem=True, image_size=32, seed=0).network.conv1.weight
    assert weight.shape == (64, 3, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_small_stem_is_for_resnets():
    with pytest.raises(
        InputError, match=r"^small_stem=True: mobilenetv3_small_050 has no small stem, only ResNets"
    ):
        build_backbone("mobilenetv3_small_050", small_stem=True)


@pytest.mark.slow
def test_small_stem_of_every_pooling():
    for name in ("resnetrs50", "resnetaa50", "skresnet18", "resnet50d", "ecaresnet26t", "resnetblur50"):
        backbone = build_backbone(name, small_stem=True, image_size=32, seed=0).eval()
        first = []
        backbone.network.layer1.register_forward_hook(
            lambda module, inputs, output, seen=first: seen.append(inputs[0])
        )
        backbone(images(32))
        assert first[0].shape[2:] == (32, 32), name


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first = build_backbone("mobilenetv3_small_050", seed=1, image_size=32)
    assert torch.equal(torch.rand(3), wanted)
    again = build_backbone("mobilenetv3_small_050", seed=1, image_size=32)
    other = build_backbone("mobilenetv3_small_050", seed=2, image_size=32)
    states = [backbone.state_dict()["network.conv_stem.weight"] for backbone in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_other_generators_are_not_drawn_from():
    before = np.random.get_state()[1].tolist()  # Python's own is drawn from by the shape checks of the tests
    build_backbone("resnet10t", seed=1, image_size=32)
    assert np.random.get_state()[1].tolist() == before


def test_building_leaves_training_mode_and_batch_norm_alone():
    network = build_backbone("resnet10t", seed=1, image_size=32).network
    assert all(module.training for module in network.modules())
    assert network.bn1.num_batches_tracked == 0


def test_input_contract_is_the_librarys():
    assert build_backbone("resnet10t", seed=0).input == InputContract(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 176, "bicubic"
    )
    half = (0.5, 0.5, 0.5)
    assert build_backbone("test_vit", seed=0).input == InputContract(half, half, 160, "bicubic", 16)
    assert build_backbone("torchvision/squeezenet1_1", seed=0, image_size=64).input == InputContract(size=64)


def test_vision_transformers_take_the_size_that_they_are_built_for():
    backbone = build_backbone("test_vit", image_size=64, seed=0)
    plain = timm.create_model("test_vit", num_classes=0, img_size=64).eval()
    plain.load_state_dict(backbone.network.state_dict(), strict=True)
    batch = images(64)
    torch.testing.assert_close(backbone.eval()(batch), plain(batch))
    with pytest.raises(InputError, match=r"^test_vit: cannot take images of 70 px"):
        build_backbone("test_vit", image_size=70)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("resnet81", "resnet18"),
        ("timm/resnet81", "resnet18"),
        ("torchvision/resnet81", "torchvision/resnet18"),
        ("resnet18.a1_in2k", "resnet18.a1_in1k"),
        ("mobilnetv3_small_050", "mobilenetv3_small_050"),
        ("torchvision/googlenet", "torchvision/"),
        ("torchvision/mnasnet1_0", "torchvision/"),
        ("qqqqqqqq", "torchvision/NAME"),
        ("hf-hub:someone/model", "torchvision/NAME"),
    ],
)
def test_unknown_names_offer_the_closest(name, offered):
    with pytest.raises(InputError) as caught:
        build_backbone(name)
    assert str(caught.value).startswith(f"{name}: unknown model; ")
    assert offered in str(caught.value)


def test_models_without_a_feature_vector_are_refused(monkeypatch):
    monkeypatch.setattr(timm.models.resnet.ResNet, "forward", lambda self, images: self.conv1(images))
    with pytest.raises(InputError, match=r"^resnet10t: gives no feature vector"):
        build_backbone("resnet10t", image_size=32)


def test_another_input_contract_leaves_the_backbone_as_it_was():
    backbone = build_backbone("resnet10t", seed=0, image_size=32).eval()
    before = backbone.input
    other = backbone.with_input(InputContract((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 64))
    assert (other.input.mean, other.input.size) == ((0.1, 0.2, 0.3), 64)
    assert backbone.input == before
    assert other.network is backbone.network
    assert (other.build, other.width, other.training) == (backbone.build, backbone.width, False)
