"""DINOv3: released vision transformers and ConvNeXts, and the same in transformers' names."""

import torch

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, Format
from tinyseed.checkpoints.formats.renaming import joined, renamed
from tinyseed.checkpoints.weights import StateDict

_SOURCE = "github.com/facebookresearch/dinov3, dinov3/models/ and dinov3/layers/"
_TRANSFORMERS_SOURCE = "github.com/huggingface/transformers, models/dinov3_vit and models/dinov3_convnext"
_NOTE = "Weights trained on satellite images (SAT-493M) look the same and need other `mean` and `std`."

_VIT = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls(\d)\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.bias_mask$", r"masks of biases.\1"),
)
_VIT_TRANSFORMERS = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.", ""),
    (r"^layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.gate_proj\.", ".mlp.w1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
)
_CONVNEXT = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
)
_CONVNEXT_TRANSFORMERS = (
    (r"^stages\.(\d)\.downsample_layers\.", r"downsample_layers.\1."),
    (r"^stages\.(\d)\.layers\.", r"stages.\1."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.layer_norm\.", ".norm."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"^layer_norm\.", "norm."),
)


def _vit(state: StateDict) -> StateDict:
    """The biases of queries and values on their own; a mask keeps those of the keys at zero."""
    found = StateDict()
    for name, value in renamed(state, _VIT).items():
        if name.endswith(".attn.qkv.bias") and value.ndim == 1 and len(value) % 3 == 0:
            attention = name.removesuffix("qkv.bias")
            found[f"{attention}q_bias"], _, found[f"{attention}v_bias"] = value.chunk(3)
        else:
            found[name] = value
    return found


def _vit_of_transformers(state: StateDict) -> StateDict:
    complete = dict(state)
    for name, value in state.items():
        if name.endswith(".q_proj.bias"):
            complete[name.replace(".q_proj.", ".k_proj.")] = torch.zeros_like(value)
    rules = _VIT_TRANSFORMERS
    if any(".gate_proj." in name for name in state):
        rules = (*rules[:-2], (r"\.mlp\.up_proj\.", ".mlp.w2."), (r"\.mlp\.down_proj\.", ".mlp.w3."))
    return _vit(renamed(joined(complete, ("q_proj", "k_proj", "v_proj"), "qkv"), rules))


def _convnext(state: StateDict) -> StateDict:
    return renamed(state, _CONVNEXT)


def _convnext_of_transformers(state: StateDict) -> StateDict:
    return _convnext(renamed(state, _CONVNEXT_TRANSFORMERS))


DINOV3_VIT = Format(
    name="DINOv3",
    source=_SOURCE,
    sign=(r"storage_tokens$", r"blocks\."),
    convert=_vit,
    unused=("mask_token", "rope_embed.", "masks of biases.", "local_cls_norm."),
    prefer=("dinov3/",),
    input=IMAGENET_BICUBIC,
    note=_NOTE,
)
DINOV3_VIT_TRANSFORMERS = Format(
    name="DINOv3 (transformers)",
    source=_TRANSFORMERS_SOURCE,
    sign=(r"embeddings\.register_tokens$", r"layer\.\d+\.layer_scale1\.lambda1$"),
    convert=_vit_of_transformers,
    unused=("mask_token",),
    prefer=("dinov3/",),
    input=IMAGENET_BICUBIC,
    note=_NOTE,
)
DINOV3_CONVNEXT = Format(
    name="DINOv3",
    source=_SOURCE,
    sign=(r"downsample_layers\.", r"norms\.3\.", r"stages\.\d+\.\d+\.dwconv\."),
    convert=_convnext,
    unused=("norms.",),
    prefer=("convnext_",),
    input=IMAGENET_BICUBIC,
)
DINOV3_CONVNEXT_TRANSFORMERS = Format(
    name="DINOv3 (transformers)",
    source=_TRANSFORMERS_SOURCE,
    sign=(r"stages\.\d+\.downsample_layers\.", r"stages\.\d+\.layers\.\d+\.depthwise_conv\."),
    convert=_convnext_of_transformers,
    prefer=("convnext_",),
    input=IMAGENET_BICUBIC,
)
