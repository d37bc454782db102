"""VISSL: a trunk of feature blocks, and heads whose activations the file does not show."""

from tinyseed.checkpoints.formats.base import Format

_SOURCE = (
    "github.com/facebookresearch/vissl, vissl/models/base_ssl_model.py, trunks/resnext.py and heads/mlp.py"
)
_NOTE = "Its heads are not used: whether there are activations between them depends on a configuration beside the file."
_MODEL = "classy_state_dict.base_model.model."

VISSL = Format(
    name="VISSL",
    source=_SOURCE,
    sign=(r"classy_state_dict\.base_model\.model\.trunk\._feature_blocks\.",),
    backbone=f"{_MODEL}trunk._feature_blocks.",
    unused=(f"{_MODEL}heads.",),
    prefer=("torchvision/", "swav/"),
    note=_NOTE,
)
VISSL_TRUNK = Format(
    name="VISSL",
    source=_SOURCE,
    sign=(r"_feature_blocks\.",),
    backbone="_feature_blocks.",
    prefer=("torchvision/", "swav/"),
    note=_NOTE,
)
