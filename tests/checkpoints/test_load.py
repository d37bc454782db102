"""Models by name: runs, weights files and random weights; mistakes name the argument that they are about."""

import dataclasses

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from tinyseed.checkpoints.load import load_model, load_teacher, random_init
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.errors import InputError, argument
from tinyseed.models.backbones import build_backbone
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.models.spec import ModelSpec
from tinyseed.models.teacher import weights_digest


def images(size=32, count=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(given, wanted):
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=2e-6 * wanted.abs().max().item())


def encoder(name="mobilenetv3_small_050", seed=0):
    backbone = build_backbone(name, seed=seed, image_size=32)
    return Encoder(backbone, build_projector("mlp", backbone.width, 16, seed=seed))


def test_a_weights_file_with_its_classifier_gives_the_whole_models_features(tmp_path):
    whole = timm.create_model("resnet10t", num_classes=7).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in whole.state_dict().items()}},
        tmp_path / "w.pth",
    )
    batch = images(48)
    for file in ("whole.safetensors", "w.pth"):
        backbone = load_model(ModelSpec("resnet10t", tmp_path / file, image_size=48)).backbone
        assert torch.equal(
            backbone(batch), whole.forward_head(whole.forward_features(batch), pre_logits=True)
        )


def test_a_torchvision_weights_file_with_its_classifier_fits(tmp_path):
    whole = torchvision.models.mobilenet_v3_small()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    spec = ModelSpec("torchvision/mobilenet_v3_small", str(tmp_path / "whole.pth"), image_size=32)
    backbone = load_model(spec).backbone
    for key, value in backbone.network.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])


def test_a_vision_transformers_file_is_for_its_own_size_and_takes_others(tmp_path):
    whole = timm.create_model("test_vit", dynamic_img_size=True).eval()
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    backbone = load_model(ModelSpec("test_vit", tmp_path / "vit.safetensors", image_size=64)).backbone
    batch = images(64)
    torch.testing.assert_close(
        backbone(batch), whole.forward_head(whole.forward_features(batch), pre_logits=True)
    )
    assert backbone.input.size == 64


def test_a_weights_file_of_another_network_is_refused_whole(tmp_path):
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"^weights=.*other.safetensors: does not fit mobilenetv3_small_050"):
        load_model(ModelSpec("mobilenetv3_small_050", tmp_path / "other.safetensors", image_size=32))


@pytest.mark.parametrize("file", ["student.safetensors", "encoder.safetensors"])
def test_a_run_folder_is_a_teacher_with_its_projector(tmp_path, file):
    network = encoder().eval()
    save_encoder(tmp_path, network, file=file, metadata={"mean": "0.1,0.2,0.3"})
    teacher = load_teacher(tmp_path, image_size=64)
    assert (teacher.dim, teacher.width, teacher.mean) == (16, 1024, (0.1, 0.2, 0.3))
    assert teacher.spec == str(tmp_path)
    with torch.no_grad():
        close(teacher(images()), network(images()))
        close(load_teacher(tmp_path / file).features(images()), network.features(images()))


def test_a_folder_beside_is_found_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "resnet18", encoder())
    assert load_model("resnet18").backbone.name == "mobilenetv3_small_050"
    (tmp_path / "resnet10t").mkdir()  # holds no model: the name is meant
    assert load_model(ModelSpec("resnet10t", "random")).backbone.name == "resnet10t"


def test_a_local_weights_file_makes_a_teacher(tmp_path):
    whole = timm.create_model("resnet10t").eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    teacher = load_teacher("resnet10t", weights=tmp_path / "w.safetensors", image_size=32)
    wanted = whole.forward_head(whole.forward_features(images()), pre_logits=True)
    close(teacher.features(images()), wanted.detach())


def test_random_is_a_model_of_random_weights():
    one, other = (
        load_model(ModelSpec("random:resnet10t", image_size=32, seed=3)),
        build_backbone("resnet10t", seed=3, image_size=32),
    )
    assert weights_digest(one.backbone.state_dict()) == weights_digest(other.state_dict())
    assert not one.training


def refused(*arguments, load=load_teacher, **settings):
    renamed = {"weights": "teacher_weights", "small_stem": "stem"}
    with pytest.raises(InputError) as caught, argument("teacher", **renamed):
        load(*arguments, **settings)
    return str(caught.value)


def test_mistakes_name_their_argument(tmp_path):
    save_encoder(tmp_path / "run", encoder())
    (tmp_path / "w.pth").write_bytes(b"")
    run, gone = tmp_path / "run", tmp_path / "gone"
    assert refused(gone).startswith(f"teacher={gone}: no such file or folder")
    assert refused("runs/gone", weights="random").startswith("teacher=runs/gone: no such file or folder")
    assert refused("gone.safetensors").startswith("teacher=gone.safetensors: no such file or folder")
    assert refused(tmp_path).startswith(f"teacher={tmp_path}: holds neither student.safetensors nor")
    assert refused(tmp_path / "w.pth").startswith(
        f"teacher={tmp_path / 'w.pth'}: cannot be read as a checkpoint"
    )
    assert refused(run, weights="random") == (
        f"teacher_weights=random: {run} has weights of its own; leave these out"
    )
    assert refused("resnet10t", weights=gone) == f"teacher_weights={gone}: no such file"
    assert refused("resnet81", weights="random").startswith("teacher=resnet81: unknown model; did you mean")
    assert refused("resnet10t", small_stem=True).startswith(
        "stem=True: the pre-trained weights of resnet10t have no"
    )
    assert refused("random:resnet81", load=load_model).startswith(
        "teacher=resnet81: unknown model; did you mean"
    )


def test_a_size_that_it_cannot_take_is_reported(tmp_path):
    backbone = build_backbone("test_vit", seed=0, image_size=64)
    save_encoder(tmp_path, Encoder(backbone))
    assert "test_vit: cannot take images of 70 px" in refused(
        ModelSpec(tmp_path, image_size=70), load=load_model
    )
    assert load_teacher(tmp_path, image_size=70).input.size == 80
    assert load_teacher(tmp_path, image_size=96)(images(96)).shape == (3, backbone.width)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet10t", {"small_stem": True}), ("test_vit", {}), ("torchvision/squeezenet1_1", {"channels": 4})],
)
def test_a_random_init_is_the_same_network_with_fresh_weights(name, settings):
    backbone = build_backbone(name, seed=0, image_size=64, **settings)
    given = Encoder(backbone, build_projector("mlp", backbone.width, 16, seed=0))
    given = given.with_input(dataclasses.replace(backbone.input, size=96))
    fresh, again = random_init(given, 3), random_init(given, 3)
    assert (fresh.input, fresh.backbone.build, fresh.projector) == (given.input, backbone.build, None)
    assert not any(module.training for module in fresh.modules())
    wanted = build_backbone(name, seed=3, image_size=backbone.build.built_size, **settings)
    digests = [weights_digest(each.state_dict()) for each in (fresh.backbone, again.backbone, wanted)]
    assert len(set(digests)) == 1
    assert digests[0] != weights_digest(backbone.state_dict())
