"""Trunks with their library's own pre-trained weights: cached or fetched. Imports this room and errors."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from tinyseed.errors import InputError
from tinyseed.models.backbones import (
    Backbone,
    Trunk,
    as_backbone,
    create_timm,
    create_torchvision,
    seeded,
)
from tinyseed.models.names import find_model, import_timm
from tinyseed.models.weights import first_line

_PATIENCE = 10.0
"""Seconds that a silent server is waited for."""


def build_pretrained(
    name: str, *, image_size: int | None = None, round_size: bool = False, field: str = "--teacher"
) -> Backbone:
    """Build a trunk with its library's pre-trained weights, from the library's cache or the network.

    Raises:
        InputError: an unknown name, no such weights, or neither cached nor in reach.
    """
    library, plain = find_model(name, field)
    if library not in ("timm", "torchvision"):
        published = "its weights are in its authors' checkpoints: give such a file in place of the name"
        raise InputError(field, name, f"has no weights of its own; {published}, or random:{name}")
    remedy = "give a run folder, an exported file, or random:NAME"
    if field == "--teacher":
        remedy = "give its weights as a file, or random ones: --teacher-weights FILE|random"
    try:
        with impatient_sockets(), seeded(0):
            if library == "timm":
                trunk = _fetch_timm(plain, image_size, field, remedy)
            else:
                trunk = create_torchvision(plain, None, weights="DEFAULT")
    except InputError:
        raise
    except Exception as error:  # downloads and their files fail in many ways
        why = f"its pre-trained weights are not at hand ({first_line(error)})"
        raise InputError(field, name, f"{why}; {remedy}") from error
    if round_size and image_size is not None:
        image_size = trunk.contract.fitting(image_size)
    return as_backbone(trunk, library, plain, small_stem=False, image_size=image_size, field=field)


def _fetch_timm(name: str, size: int | None, field: str, remedy: str) -> Trunk:
    """From timm's cache without a request, else over the network after a quick look whether it is there.

    Left alone, huggingface_hub tries for three quarters of a minute before it says that there is no network.
    """
    config = import_timm().get_pretrained_cfg(name)
    if not config.has_weights:
        raise InputError(field, name, f"timm has no pre-trained weights for it; {remedy}")
    cached = _cached_on_hub(config)
    if cached is not None:
        return create_timm(name, size, pretrained=True, pretrained_cfg_overlay={"file": cached})
    if config.hf_hub_id:
        reach_hub()
    return create_timm(name, size, pretrained=True)


def _cached_on_hub(config: Any) -> str | None:  # noqa: ANN401  (timm's PretrainedCfg)
    from huggingface_hub import try_to_load_from_cache

    if not config.hf_hub_id or config.custom_load:
        return None
    files = (
        (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    )
    found = (try_to_load_from_cache(config.hf_hub_id, file) for file in files)
    return next((path for path in found if isinstance(path, str)), None)


def reach_hub() -> None:
    """Ask the hub for anything; whatever it answers, there is a network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=_PATIENCE)


@contextlib.contextmanager
def impatient_sockets() -> Iterator[None]:
    """torch.hub sets no time limit of its own: a server that stays silent would be waited for without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
