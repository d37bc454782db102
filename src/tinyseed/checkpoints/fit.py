"""Tensors fitted into a network: all of them, or none.

timm keeps a converter beside many of its networks (`checkpoint_filter_fn`) for files as a model's authors published
them: DINOv2's and DINOv3's names, OpenAI's CLIP with its `visual.`, ConvNeXt's stages. It is tried only where the plain
names do not fit, and what it gives has to fit whole.
"""

import sys
import warnings
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from tinyseed.checkpoints.contents import why_unusable
from tinyseed.checkpoints.weights import StateDict
from tinyseed.errors import InputError
from tinyseed.models.libraries import LibraryNetwork

_CONVERTERS = ("checkpoint_filter_fn", "_filter_fn")
_RESIZED = ("pos_embed", "patch_embed", "relative_position_bias_table")
_LISTED = 4


def fit_network(made: LibraryNetwork, state: StateDict, source: object) -> None:
    """Load a state dict, with or without classifier, into a library's network.

    Args:
        made: its weights are replaced.
        state: tensors named as in the network's library or, for timm's, as its authors published them.
        source: where the tensors came from, for errors.

    Raises:
        InputError: lists what does not fit; the network is as it was.
    """
    name, network, wanted = made.build.name, made.network, made.network.state_dict()
    if made.build.library == "timm" and misfits(wanted, without(state, made.classifiers, wanted)):
        converted = _converted(network, state)
        # A converter that gains nothing would only hide what the file's own names are.
        if converted is not None and not misfits(wanted, without(converted, made.classifiers, wanted)):
            _refuse_resized(state, converted, name, source)
            state = converted
    fit_weights(network, state, name=name, source=source, left_out=made.classifiers)


def fit_weights(
    network: nn.Module, state: StateDict, *, name: str, source: object, left_out: Sequence[str] = ()
) -> None:
    """Load every tensor of a state dict into a network, or none.

    Args:
        network: its weights are replaced.
        state: tensors by name. Batch norm's counters may be missing, as in old files; torch allows it, too.
        name: what the network is called in errors.
        source: where the tensors came from, for errors.
        left_out: modules of the library's whole model that the network does not have (its classifier).

    Raises:
        InputError: lists missing, unexpected and mis-shaped tensors, or says why one cannot be a weight; the network
            is as it was.
    """
    wanted = network.state_dict()
    given = without(state, left_out, wanted)
    refuse_misfits(wanted, given, name=name, source=source)
    for key, value in given.items():
        why = why_unusable(value) or _other_kind(wanted[key], value)
        if why is not None:
            raise InputError(source, f"cannot be used, nothing was loaded: {key} {why}")
    wanted.update(given)
    network.load_state_dict(wanted, strict=True)


def refuse_misfits(wanted: StateDict, given: StateDict, *, name: str, source: object) -> None:
    """Compare names and shapes; `wanted` may be on the meta device.

    Raises:
        InputError: lists missing, unexpected and mis-shaped tensors.
    """
    problems = misfits(wanted, given)
    if problems:
        raise InputError(source, f"does not fit {name}, nothing was loaded: {describe_misfits(problems)}")


def _other_kind(wanted: Tensor, given: Tensor) -> str | None:
    """Why numbers of this type cannot stand for a network's: those of a quantized network need its scales."""
    if wanted.is_floating_point() and not given.is_floating_point():
        kind, expected = (str(each.dtype).removeprefix("torch.") for each in (given, wanted))
        return f"holds {kind} where the network has {expected}; save the weights as floating-point numbers"
    return None


def without(state: StateDict, modules: Sequence[str], keep: Collection[str] = ()) -> StateDict:
    """The tensors that do not belong to these modules, unless their names are among those to keep."""
    prefixes = tuple(f"{module}." for module in modules)
    return {name: value for name, value in state.items() if name in keep or not name.startswith(prefixes)}


def misfits(wanted: StateDict, given: StateDict) -> dict[str, list[str]]:
    """What keeps tensors from fitting, by "missing", "unexpected" and "mis-shaped"; empty where they fit.

    Batch norm's counters may be missing, as in old files; torch allows it, too.
    """
    groups = {
        "missing": [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in given if key not in wanted],
        "mis-shaped": [
            f"{key} {list(given[key].shape)} instead of {list(wanted[key].shape)}"
            for key in wanted
            if key in given and given[key].shape != wanted[key].shape
        ],
    }
    return {group: keys for group, keys in groups.items() if keys}


def describe_misfits(groups: Mapping[str, Collection[str]]) -> str:
    """Misfits in one line."""
    return "; ".join(f"{len(keys)} {group} ({shortened(keys)})" for group, keys in groups.items())


def shortened(names: Collection[str]) -> str:
    """The first few names of a list."""
    listed = ", ".join(list(names)[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed}, …"


def _converted(network: nn.Module, state: StateDict) -> StateDict | None:
    """What the converter beside a network makes of a state dict; None without one, or where it fails."""
    module = sys.modules[type(network).__module__]
    convert = next((getattr(module, each) for each in _CONVERTERS if hasattr(module, each)), None)
    if convert is None:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            return dict(convert(dict(state), network))
    except Exception:  # noqa: BLE001  (made for the authors' files; others can fail anywhere in it)
        return None


def _refuse_resized(state: StateDict, converted: StateDict, name: str, source: object) -> None:
    """Converters resize position and patch embeddings that do not fit, so their weights are no longer the file's."""
    for key, value in converted.items():
        if not any(part in key for part in _RESIZED) or value.ndim < 2:
            continue
        # A class token's position may have been removed or prepended.
        spare = value.shape[-1] if "pos_embed" in key else 0
        if not any(abs(given.numel() - value.numel()) <= spare for given in state.values()):
            size = list(value.shape)
            raise InputError(
                source, f"{key} would have to be resized to {size} for {name}; choose its model by name"
            )
