"""The axis letters and array types used everywhere.

Axes: n images, d embedding, k queue rows, f feature width, c channels, h w pixels.
A name repeated in one signature means the same size there (checked by beartype in the tests).
"""

from typing import Literal

from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

Pixels = UInt8[Tensor, "n c h w"]
"""Decoded images, 0 to 255."""

BandPixels = Float32[Tensor, "n c h w"]
"""Decoded images of other bands than red, green and blue, in [0, 1]."""

AnyPixels = Pixels | BandPixels
"""Either, as a loader returns them."""

CropPixels = UInt8[Tensor, "n c _ _"] | Float32[Tensor, "n c _ _"]
"""The same for one of several views, which may differ in size."""

Images = Float[Tensor, "n c h w"]
"""Float images: in [0, 1], or normalized where a name says so."""

ImagesOfAnySize = Float[Tensor, "n _ _ _"]
"""The same, for one of several inputs that may differ in size and channels."""

Features = Float[Tensor, "n f"]
"""Backbone outputs, any scale."""

Embeddings = Float[Tensor, "n d"]
"""Unit rows, one per image."""

Rows = Float[Tensor, "k d"]
"""Unit rows of the queue."""

Patches = Float[Tensor, "n p f"]
"""A vector for each patch of an image."""

Scalar = Float[Tensor, ""]

Interpolation = Literal["bilinear", "bicubic"]
"""How images are resized; always with antialiasing."""

Indices = Int64[Tensor, " n"]
"""Positions of images in their source."""
