"""Files of transformers whose tensors do not show what their configuration does: number of heads, images."""

from tinyseed.checkpoints.formats.base import Format

TRANSFORMERS = Format(
    name="transformers",
    source="github.com/huggingface/transformers, models/vit, models/clip, models/vit_mae and others",
    sign=(r"([a-z_]+\.)?embeddings\.(patch_embeddings?|position_embeddings?)\b",),
    unsupported=(
        "is a file of transformers, whose tensors do not show its attention heads and images; put its config.json "
        "beside it, and give the folder"
    ),
)
LINEAR_HEAD = Format(
    name="a linear head",
    source="github.com/facebookresearch/dinov2, dinov2/hub/classifiers.py",
    where=lambda candidate: candidate.state.keys() <= {"weight", "bias"},
    unsupported="is the weight and bias of one linear layer, a head without its backbone; give the backbone's file",
)
