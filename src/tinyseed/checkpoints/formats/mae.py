"""MAE: released ViT encoders, whose fixed position embeddings show whose they are."""

from tinyseed.checkpoints.formats.base import IMAGENET_BICUBIC, Candidate, Format
from tinyseed.checkpoints.formats.positions import are_sin_cos


def _fixed_positions(candidate: Candidate) -> bool:
    positions = candidate.state.get("pos_embed")
    return positions is not None and are_sin_cos(positions, first="columns")


MAE = Format(
    name="MAE",
    source="github.com/facebookresearch/mae, models_mae.py and util/pos_embed.py; images of main_linprobe.py",
    sign=(r"pos_embed$", r"blocks\."),
    where=_fixed_positions,
    unused=("decoder_", "mask_token"),
    prefer=("vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224"),
    tag="mae",
    input=IMAGENET_BICUBIC,
)
