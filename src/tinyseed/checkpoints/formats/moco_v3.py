"""MoCo v3: a ViT or ResNet with a projector, its momentum encoder, and a predictor; also converted to DeiT's layout.

Its ViT-S has twelve attention heads, which names and shapes do not show. The fixed position embeddings do.
"""

from tinyseed.checkpoints.formats.base import Candidate, Format
from tinyseed.checkpoints.formats.positions import are_sin_cos

_SOURCE = "github.com/facebookresearch/moco-v3, moco/builder.py, vits.py and convert_to_deit.py"
_LAYERS = r"(linear-plain bn relu )+linear-plain bn-plain"
_VITS = ("moco/", "vit_base_patch16_224", "torchvision/")


def _fixed_positions(candidate: Candidate) -> bool:
    positions = candidate.state.get("pos_embed")
    return positions is not None and are_sin_cos(positions, first="rows")


MOCO_V3_VIT = Format(
    name="MoCo v3",
    source=_SOURCE,
    sign=(r"base_encoder\.", r"base_encoder\.(cls_token|pos_embed|blocks\.)"),
    backbone="base_encoder.",
    head="base_encoder.head.",
    layers=_LAYERS,
    unused=("momentum_encoder.", "predictor."),
    prefer=_VITS,
)
MOCO_V3_RESNET = Format(
    name="MoCo v3",
    source=_SOURCE,
    sign=(r"base_encoder\.",),
    backbone="base_encoder.",
    head="base_encoder.fc.",
    layers=_LAYERS,
    unused=("momentum_encoder.", "predictor."),
    prefer=_VITS,
)
MOCO_V3_CONVERTED = Format(
    name="MoCo v3 (its backbone)",
    source=_SOURCE,
    sign=(r"pos_embed$", r"blocks\."),
    where=_fixed_positions,
    prefer=_VITS,
)
