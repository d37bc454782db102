"""Files that come with the package: small photographs for the demo. Imports nothing of tinyseed.

clothing/ holds 5,096 photos of clothes in 17 classes, short side 80 pixels, CC0 1.0; see clothing/SOURCE.md.
"""

from pathlib import Path
from typing import Literal


def clothing(split: Literal["train", "test"]) -> Path:
    """The Parquet file of a split (4,061 and 1,035 photos): `image` (bytes, path) and `label`.

    >>> clothing("test").name
    'test.parquet'
    """
    return Path(__file__).parent / "clothing" / f"{split}.parquet"
