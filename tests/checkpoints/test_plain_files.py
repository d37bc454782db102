"""State dicts of timm's and torchvision's networks are recognized by their tensors; authors' files are converted."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from tinyseed.checkpoints import public
from tinyseed.checkpoints.fit import fit_network
from tinyseed.checkpoints.formats.positions import sin_cos
from tinyseed.checkpoints.load import describe_model, load_model, load_teacher
from tinyseed.checkpoints.saved import save_encoder
from tinyseed.checkpoints.signatures import _index, signature
from tinyseed.errors import InputError, argument
from tinyseed.models.backbones import build_backbone
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder, build_projector
from tinyseed.models.libraries import Build, LibraryNetwork
from tinyseed.models.spec import ModelSpec


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def shaken(network):
    """Weights and statistics that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(3)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator) * (0.5 if name.endswith("var") else 0.02))
    return network.eval()


def load_file(path):
    return public.load_file(path, ModelSpec(path))


def refused(*arguments, **settings):
    with pytest.raises(InputError) as caught, argument("teacher", arch="teacher_arch"):
        load_teacher(*arguments, **settings)
    return str(caught.value)


WRAPPERS = {
    "bare": lambda state: state,
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "state_dict": lambda state: {"state_dict": state, "epoch": 7, "args": argparse.Namespace(lr=1.0)},
    "model": lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize(
    ("name", "wrapper", "classifier"),
    [
        ("torchvision/resnet18", "bare", True),
        ("torchvision/resnet18", "module", False),
        ("torchvision/mobilenet_v3_small", "model", True),
        ("resnet10t", "state_dict", True),
        ("mobilenetv3_small_050", "module", True),
        ("mobilenetv3_small_050", "bare", False),
        ("convnext_atto", "model", True),
        ("test_vit", "state_dict", False),
    ],
)
def test_torchvisions_and_timms_state_dicts_are_recognized_by_their_tensors(
    tmp_path, name, wrapper, classifier
):
    library, _, plain = name.rpartition("/")
    side = 160 if name == "test_vit" else 32
    whole = shaken(getattr(models, plain)() if library else timm.create_model(name)).state_dict()
    backbone = build_backbone(name, seed=0)
    backbone_state = {key: whole[key] for key in backbone.network.state_dict()}
    torch.save(WRAPPERS[wrapper](whole if classifier else backbone_state), tmp_path / "w.bin")
    encoder, described = load_file(tmp_path / "w.bin")
    assert (described.method, described.architecture, described.head) == ("state dict", name, "none")
    assert described.input == backbone.input
    assert described.unused.get("classifier", 0) == (len(whole) - len(backbone_state) if classifier else 0)
    assert described.epochs == (7 if wrapper == "state_dict" else None)
    backbone.network.load_state_dict(backbone_state)
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(images(side)), backbone.eval()(images(side)))


def test_the_index_is_of_the_installed_libraries():
    index = _index()
    assert len(index) > 1400
    for name in (
        "torchvision/resnet18",
        "seed/mobilenetv3_large",
        "resnet10t",
        "test_vit",
    ):
        state = build_backbone(name, seed=0).network.state_dict()
        assert index[name].signature == signature(state)
        assert index[name].tensors == len(state)


def test_old_files_without_counters_are_recognized_too(tmp_path):
    state = {k: v for k, v in models.resnet18().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_file(tmp_path / "old.pth")[1].architecture == "torchvision/resnet18"


def test_what_several_architectures_could_be_is_not_guessed(tmp_path):
    whole = shaken(timm.create_model("vit_tiny_patch16_224"))
    path = tmp_path / "w.safetensors"
    save_file(whole.state_dict(), path)
    message = refused(path)
    assert "give `teacher_arch` vit_tiny_patch16_224 or deit_tiny_patch16_224" in message
    with (
        pytest.raises(InputError, match=r"^model=.*give `model_arch` vit_tiny"),
        argument("model", arch="model_arch"),
    ):
        load_model(path)
    teacher = load_teacher(path, arch="deit_tiny_patch16_224", image_size=40)
    assert (teacher.mean, teacher.input.size) == ((0.485, 0.456, 0.406), 48)
    assert load_model(ModelSpec(path, arch="vit_tiny_patch16_224")).input.mean == (0.5, 0.5, 0.5)
    with torch.no_grad():
        wanted = whole.forward_head(whole.forward_features(images(224)), pre_logits=True)
        torch.testing.assert_close(
            load_model(ModelSpec(path, arch="vit_tiny_patch16_224")).features(images(224)), wanted
        )


def test_of_architectures_that_compute_the_same_the_plainest_is_taken(tmp_path):
    # timm has xcit_nano_12_p16_224 and _384: the same network for other sizes.
    network = timm.create_model("xcit_nano_12_p16_384", num_classes=0)
    save_file(shaken(network).state_dict(), tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors")[1].architecture == "xcit_nano_12_p16_224"


def test_an_architecture_that_is_given_is_fitted_strictly(tmp_path):
    save_file(models.resnet18().state_dict(), tmp_path / "w.safetensors")
    message = refused(tmp_path / "w.safetensors", arch="resnet10t")
    assert "does not fit resnet10t, nothing was loaded: " in message
    assert refused(tmp_path / "w.safetensors", arch="resnet81").startswith(
        "teacher_arch=resnet81: unknown model; did you mean"
    )
    assert refused("resnet10t", weights="random", arch="resnet10t").startswith(
        "teacher_arch=resnet10t: is for files"
    )
    save_encoder(tmp_path / "run", Encoder(build_backbone("resnet10t", seed=0, image_size=32)))
    assert "states its architecture" in refused(tmp_path / "run", arch="resnet10t")


def test_the_output_is_chosen(tmp_path):
    backbone = build_backbone("resnet10t", seed=0, image_size=32)
    save_encoder(tmp_path, Encoder(backbone, build_projector("mlp", backbone.width, 16, seed=0)))
    assert load_teacher(tmp_path).dim == load_teacher(tmp_path, output="head").dim == 16
    assert not load_model(ModelSpec(tmp_path, output="backbone")).training
    assert load_teacher(tmp_path, output="trunk").dim == load_teacher(tmp_path, output="backbone").dim == 512
    assert "has no head" in refused("resnet10t", weights="random", output="head")
    assert "has no head" in refused(tmp_path / "student.safetensors", output="head")


def test_dinos_full_checkpoint_gives_the_teachers_backbone(tmp_path):
    backbone_state = shaken(timm.create_model("vit_small_patch16_224", num_classes=0)).state_dict()
    widths = {0: (9, 384), 2: (9, 9), 4: (4, 9)}
    head = {f"head.mlp.{position}.weight": torch.randn(widths[position]) for position in widths}
    head |= {f"head.mlp.{position}.bias": torch.randn(widths[position][0]) for position in widths}
    last = {"head.last_layer.weight_g": torch.zeros(5, 1), "head.last_layer.weight_v": torch.zeros(5, 4)}
    inner = {f"backbone.{name}": value for name, value in backbone_state.items()}
    content = {
        "student": {f"module.{name}": value + 1 for name, value in (inner | head | last).items()},
        "teacher": inner | head | last,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    torch.save(content, tmp_path / "checkpoint.pth")
    encoder, described = load_file(tmp_path / "checkpoint.pth")
    assert (described.method, described.architecture, described.epochs) == (
        "DINO",
        "vit_small_patch16_224.dino",
        100,
    )
    assert described.unused == {"teacher.head.last_layer": 2, "student": 158, "optimizer": 1, "dino_loss": 1}
    assert (described.head, described.dim) == ("linear:9 gelu linear:9 gelu linear:4", 4)
    assert all(
        torch.equal(encoder.projector.state_dict()[key.removeprefix("head.mlp.")], head[key]) for key in head
    )
    assert described.input.interpolation == "bicubic"
    loaded = encoder.backbone.network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in backbone_state.items())


@pytest.mark.slow
def test_mae_is_recognized_by_its_position_embeddings(tmp_path):
    with torch.device("meta"):
        shapes = timm.create_model("vit_base_patch16_224", num_classes=0).state_dict()
    state = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}
    torch.save({"model": state}, tmp_path / "mae.pth")
    assert "tensors of several architectures" in refused(tmp_path / "mae.pth")
    state["pos_embed"] = sin_cos(14, 768, first="columns")[None]
    torch.save({"model": state}, tmp_path / "mae.pth")
    described = load_file(tmp_path / "mae.pth")[1]
    assert (described.method, described.architecture, described.input.mean) == (
        "MAE",
        "vit_base_patch16_224.mae",
        (0.485, 0.456, 0.406),
    )


# Authors' own names → timm's, as far as a tiny network has them.


def test_convnext_as_its_authors_published_it(tmp_path):
    ours = shaken(timm.create_model("convnext_atto", conv_mlp=False))
    names = {
        "stem.": "downsample_layers.0.",
        ".conv_dw.": ".dwconv.",
        ".mlp.fc1.": ".pwconv1.",
        ".mlp.fc2.": ".pwconv2.",
        "head.norm.": "norm.",
        "head.fc.": "head.",
    }
    state = {}
    for name, value in ours.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)  # noqa: PLW2901
        for stage in range(4):
            name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")  # noqa: PLW2901
            name = name.replace(f"stages.{stage}.blocks.", f"stages.{stage}.")  # noqa: PLW2901
        state[name] = value
    torch.save({"model": state}, tmp_path / "convnext.pth")
    encoder = load_model(ModelSpec("convnext_atto", tmp_path / "convnext.pth"))
    with torch.no_grad():
        wanted = ours.forward_head(ours.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(encoder.features(images()), wanted)
    del state["norm.bias"]
    torch.save(state, tmp_path / "convnext.pth")
    message = refused("convnext_atto", weights=tmp_path / "convnext.pth")
    assert "does not fit convnext_atto, nothing was loaded" in message


def test_dinov2_as_its_authors_published_it(tmp_path):
    ours = shaken(timm.create_model("vit_small_patch14_dinov2", num_classes=0, dynamic_img_size=True))
    state = ours.state_dict()
    assert list(state["pos_embed"].shape) == [1, 37 * 37 + 1, 384]
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, tmp_path / "dinov2_vits14_pretrain.pth")
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    teacher = load_teacher("vit_small_patch14_dinov2", weights=path, image_size=32)
    assert (teacher.input.size, teacher.input.multiple) == (42, 14)
    with torch.no_grad():
        torch.testing.assert_close(teacher.features(images(42)), ours(images(42)))
    described = describe_model(path, arch="vit_small_patch14_dinov2")
    assert described.unused == {"mask_token": 1}
    wrong = state | {"mask_token": torch.zeros(1, 384), "pos_embed": torch.zeros(1, 257, 384)}
    torch.save(wrong, path)
    assert "pos_embed" in refused("vit_small_patch14_dinov2", weights=path)


def test_clip_as_openai_published_it(tmp_path):
    settings = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    settings |= {"pre_norm": True, "norm_layer": nn.LayerNorm}
    ours = timm.models.vision_transformer.VisionTransformer(num_classes=8, **settings)
    state = shaken(ours).state_dict()
    clip = {
        "visual.class_embedding": state["cls_token"][0, 0],
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.conv1.weight": state["patch_embed.proj.weight"],
        "visual.proj": state["head.weight"].T,
        "text_projection": torch.zeros(3, 3),
        "visual.transformer.resblocks.0.attn.in_proj_weight": state["blocks.0.attn.qkv.weight"],
        "visual.transformer.resblocks.0.attn.in_proj_bias": state["blocks.0.attn.qkv.bias"],
    }
    block = {"attn.proj": "attn.out_proj", "norm1": "ln_1", "norm2": "ln_2"}
    block |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    renamed = {f"blocks.0.{new}": f"transformer.resblocks.0.{old}" for new, old in block.items()}
    for new, old in {"norm_pre": "ln_pre", "norm": "ln_post", **renamed}.items():
        clip |= {f"visual.{old}.{part}": state[f"{new}.{part}"] for part in ("weight", "bias")}
    network = timm.models.vision_transformer.VisionTransformer(num_classes=0, **settings)
    fit_network(LibraryNetwork(network, Build("clip", "timm"), InputContract(), ("head",)), clip, "clip.pt")
    loaded = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())
