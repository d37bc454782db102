"""Seconds of training until a student has 90 % of its teacher's k-NN accuracy, by commit.

    python bench/leaderboard.py [--source OTHER-CHECKOUT/src] [--entry NAME]
    python bench/leaderboard.py --show

Each entry is a fixed run (data, teacher, student, epochs, seed) of the given version, this one by default; the judge is
always this version: k-NN of the 10 nearest by the backbone's features on the test split, after each epoch. Evaluation
does not count, everything from the first step on does. If 90 % is not reached, the row says what was. Rows are appended
to bench/results/leaderboard.jsonl; compare rows of the same processor. About 6 minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import tinyseed
from common import RESULTS, machine
from judge import Judge, first_above
from tinyseed.assets import CLOTHING_TEACHER, clothing
from tinyseed.checkpoints.load import load_model
from turns import Side, ended_at_exit

HERE = Path(__file__).parent
BOARD = RESULTS / "leaderboard.jsonl"
SHARE = 0.9


@dataclass(frozen=True)
class Entry:
    """A run whose time is compared."""

    name: str
    train: Path
    test: Path
    student: str
    epochs: int
    lr: float = 0.4
    size: int = 64
    batch: int = 128
    seed: int = 0


def entries(data: Path) -> list[Entry]:
    clothes, imagenette = (clothing("train"), clothing("test")), data / "imagenette224-subset"
    small = "mobilenetv3_small_050"
    return [
        Entry("clothing, MobileNetV3-small 0.5", *clothes, small, 12),
        Entry("clothing, ResNet-18", *clothes, "resnet18", 8),
        Entry(
            "imagenette, MobileNetV3-small 0.5",
            imagenette / "train.parquet",
            imagenette / "val.parquet",
            small,
            10,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=Path(tinyseed.__file__).parents[1])
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--entry", default="", help="only entries whose name contains this")
    parser.add_argument("--epochs", type=int, help="instead of the entry's; nothing is written then")
    parser.add_argument("--show", action="store_true", help="print the table and run nothing")
    given = parser.parse_args()
    for entry in [] if given.show else entries(given.data):
        if given.entry in entry.name:
            if not entry.train.exists():
                print(f"{entry.name}: left out, there is no {entry.train}")
                continue
            row = measure(entry, given.source.resolve(), given.epochs or entry.epochs)
            if given.epochs is None:
                with BOARD.open("a", encoding="utf-8") as board:
                    board.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                print(json.dumps(row, indent=1))
    show()


def measure(entry: Entry, source: Path, epochs: int) -> dict:
    """One row of the board."""
    judge = Judge(entry.train, entry.test, entry.size)
    teacher = judge.top1(load_model(CLOTHING_TEACHER).backbone)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        steps = len(judge.labels[0]) // entry.batch
        side = Side(
            entry.name,
            command(entry, source, out, epochs),
            Path(folder) / "log",
            batch=entry.batch,
            total=steps * epochs,
        )
        side.patience = 480
        with ended_at_exit([side]):
            side.turn(side.total)
            side.finish()
        times = side.times()
        began = times[0]
        files = (
            (epoch, out.with_name(f"run-epoch-{epoch}.pth"), times[epoch * steps - 1] - began)
            for epoch in range(1, epochs + 1)
        )
        curve = judge.curve(entry.student, list(files))
    return {
        "entry": entry.name,
        **_version(source),
        "measured": datetime.now(UTC).date().isoformat(),
        "seconds": first_above(curve, SHARE * teacher),
        "share_at_end": curve[-1]["top1"] / teacher,
        "top1_at_end": curve[-1]["top1"],
        "top1_of_teacher": teacher,
        "seconds_in_all": curve[-1]["seconds"],
        "seconds_to_first_step": began,
        "curve": curve,
        "settings": {
            name: str(value) for name, value in asdict(entry).items() if name not in ("train", "test")
        },
        "machine": {name: value for name, value in machine().items() if name != "commit"},
    }


def command(entry: Entry, source: Path, out: Path, epochs: int) -> list[str]:
    fields = {
        "data": [str(entry.train)],
        "val_data": [str(entry.test)],
        "validation_images": 16,
        "evaluate_every": 10000,
        "out": str(out),
        "teacher": str(CLOTHING_TEACHER),
        "student": entry.student,
        "image_size": entry.size,
        "batch_size": entry.batch,
        "epochs": epochs,
        "lr": entry.lr,
        "seed": entry.seed,
    }
    return [
        "env",
        f"PYTHONPATH={source}",
        sys.executable,
        str(HERE / "tinyseed_side.py"),
        json.dumps(fields),
        "--snapshots",
    ]


def _version(source: Path) -> dict[str, str]:
    """The commit of a checkout and its date; + after a commit: files differ from it."""
    commit, date = _git(source, "show", "-s", "--format=%h %cs", "HEAD").split()
    changed = _git(source, "status", "--porcelain", "--untracked-files=no", "--", str(source))
    return {"commit": commit + "+" * bool(changed), "date": date}


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def show() -> None:
    """The board, an entry after the other, the latest commit last."""
    if not BOARD.exists():
        return
    rows = [json.loads(line) for line in BOARD.read_text(encoding="utf-8").splitlines()]
    print(f"\n{'':36}{'commit':>9}{'date':>12}{'to 90 %':>10}{'in all':>9}{'k-NN at end':>13}   processor")
    for row in sorted(rows, key=lambda row: (row["entry"], row["date"], row["measured"])):
        seconds = "—" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        share = f"{row['top1_at_end']:.1f} ({100 * row['share_at_end']:.0f} %)"
        print(
            f"{row['entry']:36}{row['commit']:>9}{row['date']:>12}{seconds:>10}"
            f"{row['seconds_in_all']:>7.0f} s{share:>13}   {row['machine']['processor']}"
        )


if __name__ == "__main__":
    main()
