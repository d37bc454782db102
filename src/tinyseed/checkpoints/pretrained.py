"""Backbones with their library's own pre-trained weights: from its cache, or downloaded."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from tinyseed.errors import InputError, first_line
from tinyseed.models.backbones import Backbone, as_backbone, seeded
from tinyseed.models.libraries import LibraryNetwork, create_timm, create_torchvision
from tinyseed.models.names import find_model, import_timm
from tinyseed.models.spec import ModelSpec

_PATIENCE = 10.0
"""Seconds to wait for a silent server."""


def build_pretrained(spec: ModelSpec) -> Backbone:
    """Build a backbone with its library's pre-trained weights, from the library's cache or the network.

    Raises:
        InputError: an unknown name, no such weights, or neither cached nor within reach.
    """
    name = str(spec.name)
    library, plain = find_model(name)
    if library not in ("timm", "torchvision"):
        published = "its weights are in its authors' checkpoints: give such a file in place of the name"
        raise InputError(name, f"has no weights of its own; {published}, or random:{name}")
    remedy = f"give a file of its weights in place of the name, or random:{name} for random ones"
    try:
        with impatient_sockets(), seeded(0):
            if library == "timm":
                made = _fetch_timm(plain, spec.image_size, remedy)
            else:
                made = create_torchvision(plain, None, weights="DEFAULT")
    except InputError:
        raise
    except Exception as error:  # downloads and their files fail in many ways
        why = f"its pre-trained weights cannot be loaded ({first_line(error)})"
        raise InputError(name, f"{why}; {remedy}") from error
    return as_backbone(made, spec.side(made.contract))


def _fetch_timm(name: str, size: int | None, remedy: str) -> LibraryNetwork:
    """From timm's cache without a request, else over the network after a quick test that it is there.

    Without that test, huggingface_hub tries for three quarters of a minute before it reports that there is no network.
    """
    config = import_timm().get_pretrained_cfg(name)
    if not config.has_weights:
        raise InputError(name, f"timm has no pre-trained weights for it; {remedy}")
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
    """Ask the hub for anything: an answer of any kind shows that there is a network."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    get_session().head(constants.ENDPOINT, timeout=_PATIENCE)


@contextlib.contextmanager
def impatient_sockets() -> Iterator[None]:
    """torch.hub sets no time limit of its own and would wait for a silent server forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
