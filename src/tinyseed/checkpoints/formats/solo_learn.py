"""solo-learn: Lightning checkpoints of any of its methods, with an online classifier."""

from tinyseed.checkpoints.formats.base import MLP, MLP_GELU, Candidate, Format

_SOURCE = "github.com/vturrisi/solo-learn, solo/methods/; images of solo/data/classification_dataloader.py"
_UNUSED = (
    "classifier.",
    "predictor.",
    "prototypes.",
    *(f"momentum_{part}." for part in ("backbone", "projector", "predictor", "classifier", "head")),
    "queue_ptr",
    "queue_y",
    "queue",
    "dino_loss_func.",
    "loss_func.",
)
# NNCLR ends in a batch norm, SimSiam in one without scale and shift, and MoCo v3 has no biases.
_LAYERS = rf"{MLP}( bn(-plain)?)?|(linear-plain bn relu )+linear-plain bn-plain"
_NOTE = "Mean and std are those of its data set `imagenet` and of its default for others; its file does not say them."


def _small_images(candidate: Candidate) -> bool:
    weight = candidate.state.get("backbone.conv1.weight")
    return weight is not None and weight.ndim == 4 and weight.shape[-1] == 3


SOLO_LEARN_CIFAR = Format(
    name="solo-learn",
    source=_SOURCE,
    sign=(r"backbone\.", r"classifier\.(weight|bias)$", r"(projector|head)\."),
    where=_small_images,
    unsupported=(
        "is solo-learn's ResNet for CIFAR, whose 3×3 convolution backbone.conv1 pads by 2: no network here does; "
        "train one on other images with solo-learn, or use another teacher"
    ),
)
SOLO_LEARN = Format(
    name="solo-learn",
    source=_SOURCE,
    sign=(r"backbone\.", r"classifier\.(weight|bias)$", r"projector\.\d"),
    backbone="backbone.",
    head="projector.",
    layers=_LAYERS,
    unused=_UNUSED,
    prefer=("torchvision/", "vit_"),
    note=_NOTE,
)
SOLO_LEARN_DINO = Format(
    name="solo-learn (DINO)",
    source=_SOURCE,
    sign=(r"backbone\.", r"classifier\.(weight|bias)$", r"head\.mlp\."),
    backbone="backbone.",
    head="head.mlp.",
    activation="gelu",
    layers=MLP_GELU,
    unused=("head.last_layer.", *_UNUSED),
    prefer=("torchvision/", "vit_"),
    note=_NOTE,
)
