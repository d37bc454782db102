"""DINOv2: released backbones, teachers of training, and the same in transformers' names."""

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, MLP_GELU, Format
from tinyseed.checkpoints.formats.renaming import joined, renamed
from tinyseed.checkpoints.weights import StateDict

_SOURCE = (
    "github.com/facebookresearch/dinov2, dinov2/models/vision_transformer.py, train/ and data/transforms.py"
)
_PREFER = ("vit_",)
_TAG = "lvd142m"

_RULES = (
    # Chunks of blocks, for training on several machines.
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
_TRANSFORMERS = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)


def _with_registers(state: StateDict, prefix: str = "") -> StateDict:
    """As timm has them: it adds the class token's position to it, for registers have none."""
    names = [f"{prefix}{name}" for name in ("register_tokens", "cls_token", "pos_embed")]
    if not all(name in state and state[name].ndim == 3 for name in names):
        return state
    registers, token, positions = (state[name] for name in names)
    rest = {name: value for name, value in state.items() if name not in names}
    return rest | {
        f"{prefix}reg_token": registers,
        f"{prefix}cls_token": token + positions[:, :1] if token.shape[2] == positions.shape[2] else token,
        f"{prefix}pos_embed": positions[:, 1:],
    }


def _released(state: StateDict) -> StateDict:
    return _with_registers(renamed(state, _RULES))


def _of_training(state: StateDict) -> StateDict:
    return _with_registers(renamed(state, _RULES, "backbone."), "backbone.")


def _of_transformers(state: StateDict) -> StateDict:
    return _with_registers(renamed(joined(state, ("query", "key", "value"), "qkv"), _TRANSFORMERS))


DINOV2_TRAINING = Format(
    name="DINOv2",
    source=_SOURCE,
    sign=(r"backbone\.blocks\.", r"dino_head\."),
    convert=_of_training,
    backbone="backbone.",
    head="dino_head.mlp.",
    activation="gelu",
    layers=MLP_GELU,
    unused=("backbone.mask_token", "dino_head.last_layer.", "ibot_head."),
    prefer=_PREFER,
    tag=_TAG,
    input=IMAGENET_BICUBIC,
)
DINOV2 = Format(
    name="DINOv2",
    source=_SOURCE,
    sign=(r"blocks\.(\d+\.)+ls1\.gamma$", r"pos_embed$", r"mask_token$"),
    convert=_released,
    unused=("mask_token",),
    prefer=_PREFER,
    tag=_TAG,
    input=IMAGENET_BICUBIC,
)
DINOV2_TRANSFORMERS = Format(
    name="DINOv2 (transformers)",
    source="github.com/huggingface/transformers, models/dinov2 and models/dinov2_with_registers",
    sign=(r"embeddings\.position_embeddings$", r"encoder\.layer\.\d+\.layer_scale1\.lambda1$"),
    convert=_of_transformers,
    unused=("mask_token",),
    prefer=_PREFER,
    tag=_TAG,
    input=IMAGENET_BICUBIC,
)
