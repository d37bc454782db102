"""Vision models of Hugging Face's transformers as teachers: `transformers:FOLDER_OR_ID`. Imports this room and errors.

The package is an optional part: `pip install "tinyseed[transformers]"`.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tinyseed.errors import InputError
from tinyseed.models.backbones import Backbone, Build, probe_width
from tinyseed.models.contract import InputContract
from tinyseed.models.encoder import Encoder
from tinyseed.models.pretrained import impatient_sockets, reach_hub
from tinyseed.models.weights import few, first_line
from tinyseed.shapes import Features, Images

PREFIX = "transformers:"

_IMAGENET = InputContract()
_BICUBIC = 3
"""PIL's number for it, as preprocessor_config.json has it; others are seen as bilinear."""


class VisionModel(nn.Module):
    """A model of transformers as a trunk: images to one vector each."""

    def __init__(self, model: nn.Module, *, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.pooled = pooled
        # Position embeddings of another grid are made only on request, and by some models never.
        self.settings = {name: True for name in ("interpolate_pos_encoding",) if name in _parameters(model)}

    def forward(self, images: Images) -> Features:
        """Pooled output, or class token, of normalised images."""
        output: Any = self.model(pixel_values=images, **self.settings)
        pooled = getattr(output, "pooler_output", None)
        if self.pooled and pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))


def _parameters(model: nn.Module) -> Mapping[str, Any]:
    return inspect.signature(model.forward).parameters


def load_transformers(
    spec: str, *, image_size: int | None = None, round_size: bool = False, field: str = "--teacher"
) -> Encoder:
    """A vision model by `transformers:FOLDER_OR_ID`, in evaluation mode: a teacher, no student.

    Its features are `pooler_output` where the checkpoint has a pooled output for images (CLIP's and SigLIP's vision
    towers, DINOv2's normalised class token, the mean of a convolutional network's map); else the class token of
    `last_hidden_state`. A ViT's pooler is used only where the checkpoint has its weights. Mean, std, size and
    interpolation are those of preprocessor_config.json; without it ImageNet's mean and std, 224 px, bicubic.

    Args:
        spec: `transformers:` and a local folder, or an id on the hub (its cache, or the network).
        image_size: side of the images in pixels; by default the preprocessor's.
        round_size: take the next multiple of the patch.
        field: the flag that named it, for errors.

    Raises:
        InputError: the package is missing, no such model, or none that takes images.
    """
    model, missing = _load(spec, field)
    vision: Any = getattr(model, "vision_model", model)
    if "pixel_values" not in _parameters(vision):
        raise InputError(field, spec, f"is a {type(model).__name__}, which takes no images")
    contract = _contract(spec.removeprefix(PREFIX), vision.config)
    if image_size is not None:
        contract = replace(contract, size=contract.fitting(image_size) if round_size else image_size)
    network = VisionModel(vision, pooled=not missing)
    width = probe_width(network, contract.size, spec, field)
    return Encoder(Backbone(network, Build(spec, "transformers"), contract, width)).eval()


def _load(spec: str, field: str) -> tuple[nn.Module, bool]:
    """The model, and whether its pooler has no weights in the checkpoint."""
    place = spec.removeprefix(PREFIX)
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise InputError(field, spec, "needs transformers: pip install 'tinyseed[transformers]'") from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        try:
            model, told = AutoModel.from_pretrained(place, output_loading_info=True, local_files_only=True)
        except OSError:
            if Path(place).expanduser().exists() or place.startswith(("/", ".", "~")):
                raise
            with impatient_sockets():
                reach_hub()
            model, told = AutoModel.from_pretrained(place, output_loading_info=True)
    except Exception as error:  # broken files, unknown models, no network: each in its own way
        why = f"cannot be loaded ({first_line(error)}); give a folder that save_pretrained wrote, or an id"
        raise InputError(field, spec, why) from error
    missing = sorted(told["missing_keys"])
    unusable = [*(name for name in missing if "pooler" not in name), *told["mismatched_keys"]]
    if unusable:
        raise InputError(
            field, spec, f"lacks weights of {type(model).__name__}: {few(list(map(str, unusable)))}"
        )
    return model, bool(missing)


def _contract(place: str, config: Any) -> InputContract:  # noqa: ANN401  (one of transformers' configurations)
    """What preprocessor_config.json says of the images, else ImageNet's."""
    told = _preprocessor(place)
    own = getattr(config, "image_size", None)
    size = own if isinstance(own, int) else 224
    for key in ("crop_size", "size"):
        given = told.get(key)
        sides = list(given.values()) if isinstance(given, dict) else [given]
        if sides and isinstance(sides[0], int):
            size = sides[0]
            break
    patch = getattr(config, "patch_size", 1)
    return InputContract(
        mean=tuple(map(float, told.get("image_mean") or _IMAGENET.mean)),
        std=tuple(map(float, told.get("image_std") or _IMAGENET.std)),
        size=size,
        interpolation="bicubic" if told.get("resample", _BICUBIC) == _BICUBIC else "bilinear",
        multiple=patch if isinstance(patch, int) else 1,
    )


def _preprocessor(place: str) -> dict[str, Any]:
    from transformers.utils.hub import cached_file

    found = cached_file(place, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if found is None:
        return {}
    content = json.loads(Path(found).read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
