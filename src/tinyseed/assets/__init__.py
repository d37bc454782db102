"""Files that are bundled with the package: small photographs and a teacher.

clothing/ holds 5,096 photos of clothes in 17 classes, short side 80 pixels, CC0 1.0; see clothing/SOURCE.md.
clothing-resnet18/ holds a ResNet-18 that MoCo-v2 trained on the training photos; see its lineage.json.
"""

from pathlib import Path
from typing import Literal

CLOTHING_TEACHER = Path(__file__).parent / "clothing-resnet18"
"""A run folder's model files: encoder, projector and lineage.json."""


def clothing(split: Literal["train", "test"]) -> Path:
    """The Parquet file of a split (4,061 and 1,035 photos): `image` (bytes, path) and `label`.

    >>> clothing("test").name
    'test.parquet'
    """
    return Path(__file__).parent / "clothing" / f"{split}.parquet"
