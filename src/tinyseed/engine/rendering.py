"""A loaded batch becomes the views that methods take, on the device."""

from tinyseed.data.loader import TrainingBatch
from tinyseed.data.mixup import mixed
from tinyseed.data.render import render_view
from tinyseed.methods.views import Views


def rendered(batch: TrainingBatch) -> Views:
    """The views of a batch, with their address; mixed with each other where the batch says so."""
    images = [render_view(*pair) for pair in zip(batch.pixels, batch.draws, strict=True)]
    if batch.shares is not None:
        images = [mixed(*pair) for pair in zip(images, batch.shares, strict=True)]
    return Views(images, batch.indices, batch.epoch)
