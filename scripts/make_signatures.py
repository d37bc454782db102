"""Makes src/tinyseed/assets/signatures.json: what architecture a state dict is of, by its tensors' names and shapes.

Run it again after a new timm or torchvision: `.venv/bin/python scripts/make_signatures.py`. Networks are built on the
meta device, so hardly any weights are drawn; those that cannot be built are left out and listed.
"""

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from tinyseed.errors import InputError
from tinyseed.models import backbones, names
from tinyseed.models.signatures import signature

TARGET = Path(__file__).resolve().parents[1] / "src/tinyseed/assets/signatures.json"


def build(library: names.Library, name: str) -> backbones.Trunk:
    """A trunk on the meta device, or on the CPU where its library computes with its weights (torchvision's RegNet)."""
    try:
        with torch.device("meta"):
            return backbones.create(library, name, None, "name")
    except InputError:
        return backbones.create(library, name, None, "name")


def main() -> None:
    """Build each architecture, hash it, write the index."""
    warnings.simplefilter("ignore")
    architectures: dict[str, list[object]] = {}
    classifiers: list[list[str]] = []
    left_out = []
    for name in [*names.other_names(), *names.import_timm().list_models()]:
        library, plain = names.find_model(name, "name")
        try:
            trunk = build(library, plain)
        except InputError as error:
            left_out.append(str(error)[:150])
            continue
        if sorted(trunk.classifiers) not in classifiers:
            classifiers.append(sorted(trunk.classifiers))
        state = trunk.network.state_dict()
        parameters = sum(value.numel() for value in state.values())
        architectures[name] = [
            signature(state),
            len(state),
            parameters,
            classifiers.index(sorted(trunk.classifiers)),
        ]
    rows = [
        f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in architectures.items()
    ]
    head = {"timm": version("timm"), "torchvision": version("torchvision"), "classifiers": classifiers}
    text = json.dumps(head, separators=(",", ":"))[:-1] + ',"architectures":{\n' + ",\n".join(rows) + "\n}}\n"
    TARGET.write_text(text, encoding="utf-8")
    print(
        f"{len(architectures)} architectures, {len(text):,} bytes; left out:",
        *left_out,
        sep="\n  ",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
