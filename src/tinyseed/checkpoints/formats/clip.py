"""CLIP's visual tower and its projection: OpenAI's state dict, and what open_clip trains."""

from dataclasses import replace

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, Format
from tinyseed.checkpoints.formats.renaming import renamed
from tinyseed.checkpoints.weights import StateDict

_INPUT = replace(
    IMAGENET_BICUBIC, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
_SIGN = (r"visual\.class_embedding$", r"visual\.transformer\.resblocks\.")
_TEXT = (
    "positional_embedding",
    "text_projection",
    "token_embedding.",
    "transformer.",
    "ln_final.",
    "text.",
    "logit_scale",
    "logit_bias",
    "attn_mask",
)
_RULES = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^proj$", "head.weight"),
)
_ASKS = "does not say whether its activation is GELU (most of open_clip's) or QuickGELU (OpenAI's, MetaCLIP's, DFN's)"
_SIZES = {"input_resolution", "context_length", "vocab_size"}
"""Numbers in OpenAI's archives, which nobody else's state dicts have."""


def _tower(state: StateDict) -> StateDict:
    """Names of timm, and the projection as a linear layer without bias."""
    found = renamed(state, _RULES, "visual.")
    for name in ("visual.cls_token", "visual.pos_embed"):
        if name in found:
            found[name] = found[name].reshape(1, -1, found[name].shape[-1])
    projection = found.get("visual.head.weight")
    if projection is not None and projection.ndim == 2:
        found["visual.head.weight"] = projection.T.contiguous()
    return found


CLIP_OPENAI = Format(
    name="CLIP (OpenAI)",
    source="github.com/openai/CLIP, clip/model.py; images of clip/clip.py",
    sign=_SIGN,
    where=lambda candidate: candidate.beside >= _SIZES,
    convert=_tower,
    backbone="visual.",
    head="visual.head.",
    layers="linear-plain",
    unused=_TEXT,
    prefer=tuple(
        f"vit_{size}"
        for size in (
            "base_patch32_clip_quickgelu_224",
            "base_patch16_clip_quickgelu_224",
            "large_patch14_clip_quickgelu_224",
            "large_patch14_clip_quickgelu_336",
        )
    ),
    input=_INPUT,
    asks=_ASKS,
)
CLIP = Format(
    name="CLIP (open_clip)",
    source="github.com/mlfoundations/open_clip, src/open_clip/transformer.py and constants.py",
    sign=_SIGN,
    convert=_tower,
    backbone="visual.",
    head="visual.head.",
    layers="linear-plain",
    unused=_TEXT,
    input=_INPUT,
    asks=_ASKS,
)
