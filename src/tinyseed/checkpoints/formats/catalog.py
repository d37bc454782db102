"""All formats of public checkpoints. A new one is a record in its own file, and a line here.

The first that recognizes a file is taken, so those with more telling signs come first.
"""

from tinyseed.checkpoints.formats.base import Format
from tinyseed.checkpoints.formats.byol import BYOL_CONVERTED, BYOL_LUCIDRAINS, BYOL_STHALLES, BYOL_YAOX12
from tinyseed.checkpoints.formats.clip import CLIP, CLIP_OPENAI
from tinyseed.checkpoints.formats.dino import DINO, DINO_NETWORK, DINO_RESNET, DINO_VIT, DINO_XCIT
from tinyseed.checkpoints.formats.dinov2 import DINOV2, DINOV2_TRAINING, DINOV2_TRANSFORMERS
from tinyseed.checkpoints.formats.dinov3 import (
    DINOV3_CONVNEXT,
    DINOV3_CONVNEXT_TRANSFORMERS,
    DINOV3_VIT,
    DINOV3_VIT_TRANSFORMERS,
)
from tinyseed.checkpoints.formats.huggingface import LINEAR_HEAD, TRANSFORMERS
from tinyseed.checkpoints.formats.ibot import IBOT
from tinyseed.checkpoints.formats.lightly import LIGHTLY, LIGHTLY_DINO, LIGHTLY_DINO_EXAMPLE, LIGHTLY_TRAIN
from tinyseed.checkpoints.formats.mae import MAE
from tinyseed.checkpoints.formats.moco import MOCO_V1, MOCO_V2
from tinyseed.checkpoints.formats.moco_v3 import MOCO_V3_CONVERTED, MOCO_V3_RESNET, MOCO_V3_VIT
from tinyseed.checkpoints.formats.seed import SEED
from tinyseed.checkpoints.formats.simclr import (
    SIMCLR_OF_SEED,
    SIMCLR_SELECTIVE,
    SIMCLR_SEPARIUS,
    SIMCLR_SPIJKERVET,
    SIMCLR_SPIJKERVET_LIGHTNING,
    SIMCLR_STHALLES,
    SIMCLR_TONYLINS,
)
from tinyseed.checkpoints.formats.simsiam import SIMSIAM
from tinyseed.checkpoints.formats.solo_learn import SOLO_LEARN, SOLO_LEARN_CIFAR, SOLO_LEARN_DINO
from tinyseed.checkpoints.formats.swav import SWAV
from tinyseed.checkpoints.formats.vicreg import BARLOW_TWINS, VICREG, VICREGL, VICREGL_CONVNEXT
from tinyseed.checkpoints.formats.vissl import VISSL, VISSL_TRUNK

FORMATS: tuple[Format, ...] = (
    MOCO_V1,
    MOCO_V2,
    MOCO_V3_VIT,
    MOCO_V3_RESNET,
    SEED,
    SWAV,
    SIMSIAM,
    BYOL_STHALLES,
    BYOL_YAOX12,
    BYOL_LUCIDRAINS,
    BYOL_CONVERTED,
    BARLOW_TWINS,
    VICREGL_CONVNEXT,
    VICREGL,
    VICREG,
    SIMCLR_OF_SEED,
    SIMCLR_STHALLES,
    SIMCLR_TONYLINS,
    SIMCLR_SELECTIVE,
    SIMCLR_SEPARIUS,
    SIMCLR_SPIJKERVET,
    SIMCLR_SPIJKERVET_LIGHTNING,
    SOLO_LEARN_CIFAR,
    SOLO_LEARN_DINO,
    SOLO_LEARN,
    LIGHTLY_DINO,
    LIGHTLY,
    LIGHTLY_DINO_EXAMPLE,
    LIGHTLY_TRAIN,
    VISSL,
    VISSL_TRUNK,
    CLIP_OPENAI,
    CLIP,
    IBOT,
    DINO,
    DINOV2_TRAINING,
    DINO_NETWORK,
    DINOV2,
    DINOV2_TRANSFORMERS,
    DINOV3_VIT,
    DINOV3_VIT_TRANSFORMERS,
    DINOV3_CONVNEXT,
    DINOV3_CONVNEXT_TRANSFORMERS,
    TRANSFORMERS,
    LINEAR_HEAD,
    MOCO_V3_CONVERTED,
    MAE,
    DINO_XCIT,
    DINO_VIT,
    DINO_RESNET,
)

STATE_DICT = Format(
    name="state dict",
    source="torchvision, timm, tinyseed.networks",
    layers=r"(linear(-plain)? (bn(-plain)? )?relu )*linear(-plain)?( bn(-plain)?)?",
    input=None,
)
"""A network of a library and nothing else; what no format recognizes."""
