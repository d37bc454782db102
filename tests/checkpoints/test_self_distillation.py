"""DINO, iBOT, DINOv2 and DINOv3 as their authors publish them, and as transformers writes them in one file."""

import argparse

import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tinyseed.checkpoints.load import describe_model, load_model
from tinyseed.checkpoints.public import load_file
from tinyseed.errors import InputError
from tinyseed.models.spec import ModelSpec

BICUBIC = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}


def prototypes(name, count=4096):
    return {f"{name}.weight_g": torch.ones(count, 1), f"{name}.weight_v": torch.ones(()).expand(count, 256)}


def bottleneck(settled, width, seed=5):
    """The layers of DINO's head before its prototypes."""
    return settled(
        nn.Sequential(
            nn.Linear(width, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        ),
        seed,
    )


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def training_file(teacher, student, loss):
    """main_dino.py and main_ibot.py save the same entries."""
    return {
        "student": under("module.", student),
        "teacher": teacher,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
        "epoch": 300,
        "args": argparse.Namespace(arch="vit_small", patch_size=16),
        **loss,
        "fp16_scaler": {"scale": 65536.0, "_growth_tracker": 7},
    }


SIZES = {
    # architecture: width, depth, heads, patch
    "vit_tiny_patch16_224": (192, 12, 3, 16),
    "vit_small_patch8_224": (384, 12, 6, 8),
}


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", *(pytest.param(name, marks=pytest.mark.slow) for name in list(SIZES)[1:])],
)
def test_dino_s_training_checkpoint_gives_its_teacher(
    name, settled, noise, vit_tensors, vit_tokens, published, refused
):
    width, depth, heads, patch = SIZES[name]
    backbone, head = vit_tensors(width, depth, patch, 224), bottleneck(settled, width)
    network = (
        under("backbone.", backbone) | under("head.mlp.", head.state_dict()) | prototypes("head.last_layer")
    )
    student = {key: value + 1 for key, value in network.items()}

    def file(teacher):
        return training_file(teacher, student, {"dino_loss": {"center": torch.zeros(1, 4096)}})

    features = vit_tokens(backbone, noise(224), heads)[:, 0]
    _, described = published(
        file(network),
        noise(224),
        features,
        head(features),
        method="DINO",
        epochs=300,
        size=224,
        **BICUBIC,
    )
    assert described.architecture.partition(".")[0] == name
    assert described.dim == 256
    assert described.unused["student"] == len(student)
    assert sum(count for group, count in described.unused.items() if "last_layer" in group) == 2
    if name == "vit_tiny_patch16_224":
        refused(file, network, "backbone.blocks.3.attn.qkv.weight")


def test_dino_s_resnet_with_its_head(resnet, settled, noise, published):
    """dino_resnet50_pretrain_full_checkpoint.pth; its head has batch norm, and its backbone torchvision's names."""
    backbone = settled(resnet())
    head = settled(
        nn.Sequential(nn.Linear(512, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 256)), seed=5
    )
    network = under("backbone.", backbone.state_dict()) | under("head.mlp.", head.state_dict())
    network |= prototypes("head.last_layer")
    features = backbone(noise(64))
    published(
        training_file(network, network, {"dino_loss": {"center": torch.zeros(1, 4096)}}),
        noise(64),
        features,
        head(features),
        method="DINO",
        architecture="torchvision/resnet18",
        **BICUBIC,
    )


@pytest.mark.slow
def test_dino_s_xcit(settled, noise, published, refused):
    """As torch.hub has it: facebookresearch/xcit's names, which timm's converter knows."""
    import timm

    network = settled(timm.create_model("xcit_small_12_p16_224", num_classes=0))
    state = {}
    for name, value in network.state_dict().items():
        if ".attn.q." in name:
            parts = [network.state_dict()[name.replace(".q.", f".{part}.")] for part in "qkv"]
            state[name.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            state[name.replace("pos_embed.", "pos_embeder.")] = value
    features = network(noise(224))
    published(
        state,
        noise(224),
        features,
        converted=True,
        method="DINO",
        architecture="xcit_small_12_p16_224",
        **BICUBIC,
    )
    refused(dict, state, "cls_attn_blocks.1.mlp.fc1.weight")


def test_ibot_s_training_checkpoint_gives_its_teacher(
    settled, noise, vit_tensors, vit_tokens, published, refused
):
    """main_ibot.py and models/head.py: prototypes of patches beside those of the class token; masks in the student."""
    backbone, head = vit_tensors(192, 12, 16, 224), bottleneck(settled, 192)
    network = under("backbone.", backbone) | under("head.mlp.", head.state_dict())
    network |= prototypes("head.last_layer") | prototypes("head.last_layer2")
    student = {**network, "backbone.masked_embed": torch.zeros(1, 192)}
    loss = {"ibot_loss": {"center": torch.zeros(1, 4096), "center2": torch.zeros(1, 1, 4096)}}

    def file(teacher):
        return training_file(teacher, student, loss)

    features = vit_tokens(backbone, noise(224), 3)[:, 0]
    _, described = published(
        file(network), noise(224), features, head(features), method="iBOT", epochs=300, **BICUBIC
    )
    assert described.unused["student"] == len(student)
    assert described.architecture.partition(".")[0] == "vit_tiny_patch16_224"
    refused(file, network, "head.mlp.4.weight")


@pytest.mark.slow
def test_dinov2_s_backbone_with_registers(noise, vit_tensors, vit_tokens, published, refused):
    """As torch.hub has it, at the 518 px that it was trained for last."""
    state = vit_tensors(384, 12, 14, 518, registers=4, scaled=True, mask="mask_token")
    images = noise(518)[1:]
    features = vit_tokens(state, images, 6)[:, 0]
    _, described = published(state, images, features, method="DINOv2", size=518, **BICUBIC)
    assert described.architecture.partition(".")[0] == "vit_small_patch14_reg4_dinov2"
    assert described.unused == {"mask_token": 1}
    refused(dict, state, "blocks.7.ls1.gamma")


@pytest.mark.slow
def test_dinov2_s_teacher_file(settled, noise, vit_tensors, vit_tokens, published, refused):
    """train.py's teacher_checkpoint.pth: blocks in chunks, heads of class token and patches."""
    backbone = vit_tensors(384, 12, 14, 518, scaled=True, mask="mask_token")
    chunked = {name.replace("blocks.", f"blocks.{int(name.split('.')[1]) // 3}.")
               if name.startswith("blocks.") else name: value for name, value in backbone.items()}  # fmt: skip
    head = bottleneck(settled, 384)
    network = under("backbone.", chunked)
    for prefix in ("dino_head.", "ibot_head."):
        network |= under(f"{prefix}mlp.", head.state_dict()) | prototypes(f"{prefix}last_layer")
    images = noise(518)[1:]
    features = vit_tokens(backbone, images, 6)[:, 0]
    _, described = published(
        {"teacher": network}, images, features, head(features), method="DINOv2", **BICUBIC
    )
    assert described.dim == 256
    assert described.unused["ibot_head"] == 8
    refused(lambda state: {"teacher": state}, network, "dino_head.mlp.2.weight")


def test_a_linear_head_alone_is_no_network(saved):
    """dinov2_vits14_linear_head.pth holds a classifier's weight and bias, and no backbone."""
    path = saved({"weight": torch.ones(1000, 768), "bias": torch.ones(1000)})
    with pytest.raises(InputError, match="head") as caught:
        load_file(path, ModelSpec(path))
    assert "\n" not in str(caught.value)


def huggingface(kind, **config):
    """A model of transformers with random weights, and its tensors by the names of its files."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**config)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1 and "weight" in name:
                value.uniform_(0.8, 1.2)
            elif "lambda" in name or name.endswith("gamma"):
                value.uniform_(0.3, 0.7)
            elif value.ndim == 1:
                value.normal_(std=0.1)
            else:
                value.normal_(std=0.05)
    return model.requires_grad_(False)


def file_of(model, folder):
    """The tensors of a model of transformers by the names in its files, which those in memory need not be."""
    model.save_pretrained(folder)
    return load_safetensors(folder / "model.safetensors")


SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [("Dinov2", "vit_small_patch14_dinov2"), ("Dinov2WithRegisters", "vit_small_patch14_reg4_dinov2")],
)
def test_dinov2_in_transformers_names(kind, name, noise, published, refused, tmp_path):
    model = huggingface(kind, **SMALL, patch_size=14, image_size=518)
    state, images = file_of(model, tmp_path), noise(518)[1:]
    features = model(pixel_values=images).pooler_output
    _, described = published(
        state, images, features, converted=True, method="DINOv2 (transformers)", size=518, **BICUBIC
    )
    assert described.architecture.partition(".")[0] == name
    refused(dict, state, "encoder.layer.2.attention.attention.key.weight")


def dinov3(mask_biases=True):
    """A ViT-S/16 as transformers computes it, and its tensors by its authors' names (dinov3/models and layers)."""
    model = huggingface(
        "DINOv3ViT", **SMALL, intermediate_size=1536, patch_size=16, image_size=224, num_register_tokens=4
    )
    theirs = model.state_dict()
    state = {
        "cls_token": theirs["embeddings.cls_token"],
        "storage_tokens": theirs["embeddings.register_tokens"],
        "mask_token": theirs["embeddings.mask_token"][0],
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.bias"],
        "rope_embed.periods": 100.0 ** (torch.arange(16) / 16),
        "norm.weight": theirs["norm.weight"],
        "norm.bias": theirs["norm.bias"],
    }
    layer = "model.layer" if "model.layer.0.norm1.weight" in theirs else "layer"
    for number in range(12):
        old, new = f"{layer}.{number}", f"blocks.{number}"
        qkv = [f"{old}.attention.{part}_proj" for part in "qkv"]
        state[f"{new}.attn.qkv.weight"] = torch.cat([theirs[f"{part}.weight"] for part in qkv])
        query, value = theirs[f"{qkv[0]}.bias"], theirs[f"{qkv[2]}.bias"]
        # Whatever the keys' biases are, the mask removes them.
        state[f"{new}.attn.qkv.bias"] = torch.cat([query, torch.ones_like(query), value])
        if mask_biases:
            zeros = torch.zeros_like(query)
            state[f"{new}.attn.qkv.bias_mask"] = torch.cat([zeros + 1, zeros, zeros + 1])
        pairs = {"attn.proj": "attention.o_proj", "norm1": "norm1", "norm2": "norm2"}
        pairs |= {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
        for mine, other in pairs.items():
            state |= {f"{new}.{mine}.{part}": theirs[f"{old}.{other}.{part}"] for part in ("weight", "bias")}
        for which in (1, 2):
            state[f"{new}.ls{which}.gamma"] = theirs[f"{old}.layer_scale{which}.lambda1"]
    return model, state


def test_dinov3_s_vit(noise, published, refused):
    """The class token, which its authors use; timm's own network would give the mean of the patches."""
    model, state = dinov3()
    features = model(pixel_values=noise(224)).last_hidden_state[:, 0]
    _, described = published(state, noise(224), features, converted=True, method="DINOv3", **BICUBIC)
    assert described.width == 384
    assert described.unused == {"mask_token": 1, "rope_embed": 1, "masks of biases": 12}
    refused(dict, state, "blocks.5.mlp.fc2.weight")


def test_dinov3_s_vit_in_transformers_names(noise, published, refused, tmp_path):
    model, _ = dinov3()
    state = file_of(model, tmp_path)
    features = model(pixel_values=noise(224)).last_hidden_state[:, 0]
    published(state, noise(224), features, converted=True, method="DINOv3 (transformers)", **BICUBIC)


def test_dinov3_s_convnext(noise, published, refused, tmp_path):
    model = huggingface("DINOv3ConvNext", hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3])
    theirs = file_of(model, tmp_path)
    state = {}
    for name, value in theirs.items():
        stage, _, rest = name.removeprefix("stages.").partition(".")
        if name.startswith("layer_norm."):
            state[name.replace("layer_norm", "norm")] = value
            # Its `norms` hold the last norm again.
            state[name.replace("layer_norm", "norms.3")] = value
        elif rest.startswith("downsample_layers."):
            state[f"downsample_layers.{stage}.{rest.removeprefix('downsample_layers.')}"] = value
        else:
            new = (
                rest.removeprefix("layers.").replace("depthwise_conv", "dwconv").replace("layer_norm", "norm")
            )
            state[f"stages.{stage}.{new.replace('pointwise_conv', 'pwconv')}"] = value
    features = model(pixel_values=noise(64)).pooler_output
    expected = {"architecture": "convnext_tiny", **BICUBIC}
    published(state, noise(64), features, method="DINOv3", **expected)
    published(theirs, noise(64), features, method="DINOv3 (transformers)", **expected)
    refused(dict, state, "stages.2.4.pwconv1.weight")


def test_a_file_of_transformers_beside_its_configuration_is_loaded_with_it(tmp_path, noise):
    """Whose heads and images a ViT's tensors do not show, config.json and preprocessor_config.json do."""
    model = huggingface("ViT", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                        image_size=32, patch_size=8)  # fmt: skip
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    encoder = load_model(tmp_path / "model.safetensors")
    assert describe_model(tmp_path / "model.safetensors").input.mean == (0.5, 0.5, 0.5)
    wanted = F.normalize(model(pixel_values=noise(32)).pooler_output, dim=1)
    torch.testing.assert_close(encoder(noise(32)), wanted, rtol=0, atol=1e-5)
    save_file(model.state_dict(), tmp_path / "alone.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json") as caught:
        load_model(tmp_path / "alone.safetensors")
    assert "\n" not in str(caught.value)
