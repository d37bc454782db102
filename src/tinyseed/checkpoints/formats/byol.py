"""BYOL in PyTorch, by four authors; its own authors' code and weights are for JAX."""

from tinyseed.checkpoints.formats.base import UNIT, Candidate, Format
from tinyseed.checkpoints.formats.renaming import LISTED_RESNET, renamed
from tinyseed.checkpoints.weights import StateDict

_STATISTICS = (".running_mean", ".running_var")


def _unlisted(state: StateDict) -> StateDict:
    return renamed(state, LISTED_RESNET, "online_network_state_dict.encoder.")


def _unnamed(state: StateDict) -> StateDict:
    layers = [(r"^l1\.", "0."), (r"^bn1\.", "1."), (r"^l2\.", "3.")]
    return renamed(
        renamed(state, LISTED_RESNET, "online_network.encoder."), layers, "online_network.projetion."
    )


def _statistics_last(candidate: Candidate) -> bool:
    """A torch module lists each batch norm's statistics after its weights; the converter writes all of them last."""
    names = list(candidate.state)
    statistics = [number for number, name in enumerate(names) if name.endswith(_STATISTICS)]
    return (
        "conv1.weight" in candidate.state
        and not candidate.has(r".*num_batches_tracked$")
        and bool(statistics)
        and statistics == list(range(len(names) - len(statistics), len(names)))
        and any(name.startswith("layer") for name in names)
    )


BYOL_STHALLES = Format(
    name="BYOL (sthalles)",
    source="github.com/sthalles/PyTorch-BYOL, trainer.py and models/; no normalization: data/transforms.py",
    sign=(r"online_network_state_dict\.encoder\.",),
    convert=_unlisted,
    backbone="online_network_state_dict.encoder.",
    head="online_network_state_dict.projetion.net.",
    unused=("target_network_state_dict.",),
    input=UNIT,
)
BYOL_YAOX12 = Format(
    name="BYOL (yaox12)",
    source="github.com/yaox12/BYOL-PyTorch, model/; images of data/byol_transform.py",
    sign=(r"online_network\.encoder\.", r"target_network\."),
    convert=_unnamed,
    backbone="online_network.encoder.",
    head="online_network.projetion.",
    unused=("target_network.", "predictor."),
)
BYOL_LUCIDRAINS = Format(
    name="BYOL (lucidrains)",
    source="github.com/lucidrains/byol-pytorch, byol_pytorch/byol_pytorch.py",
    sign=(r"online_encoder\.net\.", r"online_predictor\."),
    backbone="online_encoder.net.",
    head="online_encoder.projector.",
    unused=("net.", "target_encoder.", "online_predictor."),
)
BYOL_CONVERTED = Format(
    name="BYOL (DeepMind's weights, converted)",
    source="github.com/chigur/byol-convert, convert.py and resnet.py",
    where=_statistics_last,
    unsupported=(
        "looks like BYOL's JAX weights converted by byol-convert (batch norm statistics follow all weights, without "
        "counters): that network pads as TensorFlow's SAME does, which none here does; use another teacher, or give "
        "`arch` NAME if the file is something else"
    ),
)
