"""SimSiam: a ResNet whose last layer is the projector, and a predictor."""

from tinyseed.checkpoints.formats.base import Format

SIMSIAM = Format(
    name="SimSiam",
    source="github.com/facebookresearch/simsiam, simsiam/builder.py; images of main_simsiam.py",
    sign=(r"encoder\.fc\.\d", r"encoder\.(?!fc\.)", r"predictor\.\d"),
    backbone="encoder.",
    head="encoder.fc.",
    layers=r"(linear-plain bn relu )+linear bn-plain",
    unused=("predictor.",),
)
