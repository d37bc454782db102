"""Files as a model's authors published them become what timm's network of that model takes. Imports weights, errors.

timm keeps a converter beside many of its networks (`checkpoint_filter_fn`): DINOv2's and DINOv3's names, OpenAI's
CLIP with its `visual.`, ConvNeXt's stages. It is tried only where the plain names do not fit, and what it gives has
to fit whole.
"""

import sys
import warnings
from collections.abc import Sequence

from torch import nn

from tinyseed.errors import InputError
from tinyseed.models.weights import StateDict, fit_weights, misfits, without

_CONVERTERS = ("checkpoint_filter_fn", "_filter_fn")
_RESIZED = ("pos_embed", "patch_embed", "relative_position_bias_table")


def fit_published(
    network: nn.Module,
    state: StateDict,
    *,
    name: str,
    source: object,
    field: str,
    left_out: Sequence[str] = (),
) -> None:
    """Load a state dict into one of timm's networks, or what timm's converter makes of it; all of it or nothing.

    Its arguments are those of `fit_weights`.

    Raises:
        InputError: lists what does not fit; the network is as it was.
    """
    wanted = network.state_dict()
    if any(misfits(wanted, without(left_out, state, wanted)).values()):
        converted = _converted(network, state)
        # A converter that gains nothing would only hide what the file's own names are.
        if converted is not None and not any(misfits(wanted, without(left_out, converted, wanted)).values()):
            _refuse_resized(state, converted, name, source, field)
            state = converted
    fit_weights(network, state, name=name, source=source, field=field, left_out=left_out)


def _converted(network: nn.Module, state: StateDict) -> StateDict | None:
    """What the converter beside a network makes of a state dict; None where there is none, or it cannot."""
    module = sys.modules[type(network).__module__]
    convert = next((getattr(module, each) for each in _CONVERTERS if hasattr(module, each)), None)
    if convert is None:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return dict(convert(dict(state), network))
    except Exception:  # noqa: BLE001  (made for the authors' files; others can fail anywhere in it)
        return None


def _refuse_resized(state: StateDict, converted: StateDict, name: str, source: object, field: str) -> None:
    """Converters resize position and patch embeddings that do not fit: other weights than the file's."""
    for key, value in converted.items():
        if not any(part in key for part in _RESIZED) or value.ndim < 2:
            continue
        # A class token's position may have been taken off or put before.
        spare = value.shape[-1] if "pos_embed" in key else 0
        if not any(abs(given.numel() - value.numel()) <= spare for given in state.values()):
            why = (
                f"{key} would have to be resized to {list(value.shape)} for {name}; choose its model by name"
            )
            raise InputError(field, source, why)
