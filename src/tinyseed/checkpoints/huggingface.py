"""Vision models of Hugging Face's transformers as teachers: `transformers:FOLDER_OR_ID`.

The package is an optional part: `pip install "tinyseed[transformers]"`.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tinyseed.checkpoints.fit import shortened
from tinyseed.checkpoints.pretrained import impatient_sockets, reach_hub
from tinyseed.errors import InputError, first_line
from tinyseed.models.backbones import Backbone, probe_width
from tinyseed.models.contract import IMAGENET, InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.models.libraries import Build
from tinyseed.models.spec import ModelSpec
from tinyseed.shapes import Features, Images

PREFIX = "transformers:"

_BICUBIC = 3
"""PIL's number for it, as in preprocessor_config.json; others count as bilinear."""


class VisionModel(nn.Module):
    """A model of transformers as a backbone's network: images to one vector each."""

    def __init__(self, model: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled
        # Position embeddings of another grid are made only on request, and by some models never.
        self.settings = {name: True for name in ("interpolate_pos_encoding",) if name in _parameters(model)}

    def forward(self, images: Images) -> Features:
        """Pooled output, or class token, of normalized images."""
        output: Any = self.model(pixel_values=images, **self.settings)
        pooled = getattr(output, "pooler_output", None)
        if self.pooled and pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))


def _parameters(model: nn.Module) -> Mapping[str, Any]:
    return inspect.signature(model.forward).parameters


def load_transformers(spec: ModelSpec) -> Encoder:
    """A vision model by `transformers:FOLDER_OR_ID`, in evaluation mode: a teacher, not a student.

    Its features are `pooler_output` where the checkpoint has a pooled output for images (CLIP's and SigLIP's vision
    towers, DINOv2's normalized class token, the mean of a convolutional network's map); else the class token of
    `last_hidden_state`. A ViT's pooler is used only where the checkpoint has its weights. Mean, std, size and
    interpolation are those of preprocessor_config.json; without it ImageNet's mean and std, 224 px, bicubic.

    Args:
        spec: its name is `transformers:` and a local folder, or an id on the hub (in its cache, or downloaded).

    Raises:
        InputError: the package is missing, there is no such model, or it does not take images.
    """
    name = str(spec.name)
    model, missing = _load(name)
    vision: Any = getattr(model, "vision_model", model)
    if "pixel_values" not in _parameters(vision):
        raise InputError(name, f"is a {type(model).__name__}, which does not take images")
    contract = _contract(name.removeprefix(PREFIX), vision.config)
    contract = replace(contract, size=spec.side(contract))
    network = VisionModel(vision, pooled=not missing)
    width = probe_width(network, contract, name)
    return Encoder(Backbone(network, Build(name, "transformers"), contract, width)).eval()


def _load(name: str) -> tuple[nn.Module, bool]:
    """The model, and whether its pooler has no weights in the checkpoint."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(name, "needs transformers: pip install 'tinyseed[transformers]'") from error
    try:
        model, info = _from_pretrained(name.removeprefix(PREFIX))
    except Exception as error:  # broken files, unknown models, no network: each in its own way
        why = f"cannot be loaded ({first_line(error)}); give a folder that save_pretrained wrote, or an id"
        raise InputError(name, why) from error
    missing = sorted(info["missing_keys"])
    unusable = [*(each for each in missing if "pooler" not in each), *map(str, info["mismatched_keys"])]
    if unusable:
        raise InputError(name, f"lacks weights of {type(model).__name__}: {shortened(unusable)}")
    return model, bool(missing)


def _from_pretrained(place: str) -> tuple[nn.Module, dict[str, Any]]:
    """From the folder or the hub's cache without a request, else over the network after a quick test."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return AutoModel.from_pretrained(place, output_loading_info=True, local_files_only=True)
    except OSError:
        if Path(place).expanduser().exists() or place.startswith(("/", ".", "~")):
            raise
        with impatient_sockets():
            reach_hub()
        return AutoModel.from_pretrained(place, output_loading_info=True)


def _contract(place: str, config: Any) -> InputContract:  # noqa: ANN401  (one of transformers' configurations)
    """The images according to preprocessor_config.json, else ImageNet's."""
    preprocessor = _preprocessor(place)
    own = getattr(config, "image_size", None)
    size = own if isinstance(own, int) else 224
    for key in ("crop_size", "size"):
        given = preprocessor.get(key)
        sides = list(given.values()) if isinstance(given, dict) else [given]
        if sides and isinstance(sides[0], int):
            size = sides[0]
            break
    patch = getattr(config, "patch_size", 1)
    return InputContract(
        mean=tuple(map(float, preprocessor.get("image_mean") or IMAGENET.mean)),
        std=tuple(map(float, preprocessor.get("image_std") or IMAGENET.std)),
        size=size,
        interpolation="bicubic" if preprocessor.get("resample", _BICUBIC) == _BICUBIC else "bilinear",
        multiple=patch if isinstance(patch, int) else 1,
    )


def _preprocessor(place: str) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    found = cached_file(place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if found is None:
        return {}
    content = json.loads(Path(found).read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
