"""Make the teacher that comes with the package from the folder of a finished `tinyseed pretrain` run.

    python scripts/make_teacher.py RUN COMMIT

Weights of convolutions and linear layers are stored in float16, batch norms as they are. `lineage.json` gets the run's
settings, its final figures and the curve of its k-NN on the held-out part of the training photos. COMMIT is the version
of tinyseed that trained it. The same run gives the same files, byte for byte.
"""

import json
import sys
from pathlib import Path

import torch

from tinyseed.assets import CLOTHING_TEACHER
from tinyseed.checkpoints.saved import PROJECTOR_FILE
from tinyseed.checkpoints.weights import StateDict, read_safetensors, write_safetensors
from tinyseed.engine.run_folder import RunFolder

MOST_BYTES = 24_000_000
KEPT = ("command", "method", "data", "software", "hardware")


def halved(state: StateDict) -> StateDict:
    """Matrices and kernels in float16; what has one axis or none is small, and some of it needs its range."""
    return {name: value.half() if value.ndim > 1 else value for name, value in state.items()}


def lineage(run: RunFolder, commit: str) -> dict[str, object]:
    """Where the teacher comes from: enough to train it again."""
    before = json.loads(run.lineage.read_text(encoding="utf-8"))
    curve = [
        {name: line[name] for name in ("epoch", "step", "knn_top1", "effective_rank")}
        for line in run.logged()
        if "knn_top1" in line
    ]
    return {
        "about": "MoCo-v2 on this package's clothing photos (CC0); labels served k-NN on held-out photos alone",
        "commit": commit,
        **{name: before[name] for name in KEPT},
        "settings": json.loads(run.config.read_text(encoding="utf-8")),
        "summary": json.loads(run.summary.read_text(encoding="utf-8")),
        "curve": curve,
    }


def main() -> None:
    """Write the folder, and say how far float16 moves the embedding's file."""
    run, commit = RunFolder(Path(sys.argv[1])), sys.argv[2]
    for name in ("encoder.safetensors", PROJECTOR_FILE):
        state, metadata = read_safetensors(run.path / name)
        small = halved(state)
        moved = max(float((small[key].double() - value.double()).abs().max()) for key, value in state.items())
        write_safetensors(
            CLOTHING_TEACHER / name, small, dict(sorted(metadata.items())) | {"stored": "float16"}
        )
        print(f"{name}: {len(state)} tensors, largest change of a weight {moved:.2g}")
    text = json.dumps(lineage(run, commit), indent=1, ensure_ascii=False)
    (CLOTHING_TEACHER / "lineage.json").write_text(text + "\n", encoding="utf-8")
    total = sum(file.stat().st_size for file in CLOTHING_TEACHER.iterdir())
    print(f"{total:,} bytes")
    assert total <= MOST_BYTES, "too large for the package"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
