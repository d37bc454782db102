"""All formats of public checkpoints. A new one is a record in its own file, and a line here.

The first that recognizes a file is taken, so those with more telling signs come first.
"""

from tinyseed.checkpoints.formats.base import Format
from tinyseed.checkpoints.formats.dino import DINO, DINO_NETWORK, DINO_RESNET, DINO_VIT
from tinyseed.checkpoints.formats.mae import MAE
from tinyseed.checkpoints.formats.moco import MOCO_V1, MOCO_V2
from tinyseed.checkpoints.formats.moco_v3 import MOCO_V3_CONVERTED, MOCO_V3_RESNET, MOCO_V3_VIT
from tinyseed.checkpoints.formats.seed import SEED
from tinyseed.checkpoints.formats.simclr import SIMCLR_OF_SEED, SIMCLR_STHALLES
from tinyseed.checkpoints.formats.swav import SWAV

FORMATS: tuple[Format, ...] = (
    MOCO_V1,
    MOCO_V2,
    MOCO_V3_VIT,
    MOCO_V3_RESNET,
    SEED,
    SWAV,
    SIMCLR_OF_SEED,
    SIMCLR_STHALLES,
    DINO,
    DINO_NETWORK,
    MOCO_V3_CONVERTED,
    MAE,
    DINO_VIT,
    DINO_RESNET,
)

STATE_DICT = Format(
    name="state dict",
    source="torchvision, timm, tinyseed.networks",
    input=None,
)
"""A network of a library and nothing else; what no format recognizes."""
