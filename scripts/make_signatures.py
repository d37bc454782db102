"""Makes src/tinyseed/assets/signatures.json: which architecture a state dict is of, by its tensors' names and shapes.

Run it again after a new timm or torchvision: `.venv/bin/python scripts/make_signatures.py`. Networks are built on the
meta device, so hardly any weights are drawn; those that cannot be built are left out and listed.
"""

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from tinyseed.checkpoints.signatures import parts_of, signature
from tinyseed.errors import InputError
from tinyseed.models import names
from tinyseed.models.libraries import create_on_meta

TARGET = Path(__file__).resolve().parents[1] / "src/tinyseed/assets/signatures.json"


def main() -> None:
    """Build each architecture and write the index of their digests."""
    warnings.simplefilter("ignore")
    architectures: dict[str, list[object]] = {}
    classifiers: list[list[str]] = []
    parts: list[list[str]] = []
    left_out = []
    for name in [*names.other_names(), *names.import_timm().list_models()]:
        try:
            made = create_on_meta(*names.find_model(name))
        except InputError as error:
            left_out.append(str(error)[:150])
            continue
        if sorted(made.classifiers) not in classifiers:
            classifiers.append(sorted(made.classifiers))
        state = made.network.state_dict()
        if parts_of(state) not in parts:
            parts.append(parts_of(state))
        parameters = sum(value.numel() for value in state.values())
        architectures[name] = [
            signature(state),
            len(state),
            parameters,
            classifiers.index(sorted(made.classifiers)),
            parts.index(parts_of(state)),
        ]
    rows = [
        f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in architectures.items()
    ]
    head = {
        "timm": version("timm"),
        "torchvision": version("torchvision"),
        "classifiers": classifiers,
        "parts": parts,
    }
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
