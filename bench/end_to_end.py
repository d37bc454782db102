"""tinyseed's training loop beside others: the SEED authors' published one, and LightlyTrain's distillation.

    python bench/end_to_end.py [--lightly-python ENV/bin/python] [--case NAME] [--turns 5]

Each side is the whole command (reading, decoding, crops, colors, both networks, loss, optimizer, queue, its own log)
in processes of its own. They take turns of a few steps in one run; a side that waits is stopped, see turns.py. The
table has medians over the turns of milliseconds per image, and of the ratios to tinyseed within a turn, at the same
precision and at everybody's defaults (tinyseed: bfloat16 where the processor multiplies it; the others: float32).

- *authors*: SEED's published loop, restated (authors_side.py), with the best of 0, 1 and 2 DataLoader workers, chosen
  by a short trial of each. "Tuned" adds channels-last memory and bfloat16.
- *LightlyTrain*: `distillationv1` and `distillationv3` from PyPI, if `--lightly-python` names the Python of an
  environment that has it (python -m venv ENV && ENV/bin/pip install lightly-train==0.18.0 timm jaxtyping).
  Its version 3 has a second loss over patches. Teachers: its v1 takes only its own by name, so both sides take a
  ViT-S/14 of random weights; v3 takes any, so both take the same ResNet.
- *tinyseed, cached*: with `cache_views`, where this version has that setting.

The case "learning" trains the sides for ten epochs on the package's photos (LightlyTrain with `--lightly-learns`):
seconds for all of it, k-NN on the test photos by epoch (the same code for all, features of the backbone), and the
seconds to 90 % of the teacher's k-NN.

About 15 minutes on two cores, of which the learning case takes half. Each case's result is kept when it ends, so cases
can be measured one by one. Writes bench/results/end-to-end.json.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

import tinyseed
from common import RESULTS, machine, write_results
from judge import Judge, first_above
from step import Case as StepCase
from step import enlarged, teacher_with_head
from tinyseed.assets import CLOTHING_TEACHER, clothing
from tinyseed.checkpoints.load import load_model
from tinyseed.data.sources import open_source
from tinyseed.methods.seed import SeedSettings
from tinyseed.precision import native_bf16
from turns import Side, ended_at_exit, take_turns

HERE = Path(__file__).parent
EPOCHS, LR = 10, 0.4
CACHED_VIEWS = 2
VIT = "vit_small_patch14_dinov2"
VIT_OF_LIGHTLY = "dinov2/vits14-noreg-notpretrained"


@dataclass(frozen=True)
class Case:
    """Two networks at a size, and which sides are measured."""

    name: str
    teacher: str
    student: str
    size: int
    batch: int
    queue: int
    steps: int
    sides: tuple[str, ...]
    lightly: str = ""
    learns: bool = False
    aims: dict[str, float] = field(default_factory=dict)


AUTHORS = ("authors", "authors, tuned", "tinyseed, float32", "tinyseed")
LIGHTLY = ("lightly", "lightly, bf16", "tinyseed, float32", "tinyseed")
SMALL = "mobilenetv3_small_050"
R50_R18, VIT_R18 = ("resnet50", "resnet18"), (VIT, "resnet18")
V1, V3 = "distillationv1", "distillationv3"
CASES = (
    Case(
        *("learning, 64 px", "clothing", SMALL, 64, 128, 1024, 10),
        *(("authors", "tinyseed", "tinyseed, cached", "lightly"), V3),
        learns=True,
    ),
    Case("authors, 64 px", *R50_R18, 64, 128, 65536, 3, AUTHORS, aims={"authors": 1.5}),
    Case("authors, 224 px", *R50_R18, 224, 32, 65536, 2, AUTHORS, aims={"authors": 1.3}),
    Case("lightly v1, 70 px", *VIT_R18, 70, 128, 1024, 3, LIGHTLY, V1, aims={"lightly": 1.5}),
    Case("lightly v1, 224 px", *VIT_R18, 224, 32, 512, 2, LIGHTLY, V1, aims={"lightly": 1.2}),
    Case("lightly v3, 64 px", *R50_R18, 64, 128, 1024, 3, LIGHTLY, V3, aims={"lightly": 1.5}),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="at most")
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="for the turns of a case, at least two each"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the learning case")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--sides", default="", help="only sides whose name contains this, and tinyseed")
    parser.add_argument(
        "--seeds", type=int, default=1, help="of the learning case; all but the first without turns"
    )
    parser.add_argument(
        "--lightly-learns", action="store_true", help="LightlyTrain takes part in the learning case"
    )
    parser.add_argument(
        "--workers", type=int, help="DataLoader workers of the others; default: a trial of 0, 1 and 2"
    )
    parser.add_argument("--lightly-python", type=Path, help="Python of an environment with lightly-train")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials: dict[tuple[str, bool], int] = {}
        for case in CASES:
            if given.case in case.name and not given.sides:
                keep(Measurement(case, Path(folder), given, trials).result())
            elif given.case in case.name:
                Measurement(case, Path(folder), given, trials).result()


def keep(result: dict) -> None:
    """Write a case's result in the place of its former one; the others stay."""
    path = RESULTS / "end-to-end.json"
    former = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    others = [each for each in former if each["case"] != result["case"]]
    order = [case.name for case in CASES]
    write_results(
        "end-to-end", {"results": sorted([*others, result], key=lambda each: order.index(each["case"]))}
    )


class Measurement:
    """One case: its sides, and what they did."""

    def __init__(
        self, case: Case, folder: Path, given: argparse.Namespace, trials: dict[tuple[str, bool], int]
    ) -> None:
        self.case, self.given, self.trials = case, given, trials
        self.folder = folder / case.name.replace(" ", "-").replace("/", "-")
        self.folder.mkdir()
        self.photos = photos(folder, 0) if case.size <= 80 else photos(folder, 256)
        self.teacher, self.teacher_backbone = teachers(case, folder)
        self.epochs = given.epochs if case.learns else 1000

    def result(self) -> dict:
        """Measure and print the case."""
        case = self.case
        networks = f"{case.teacher} to {case.student}"
        print(f"\n{case.name}: {networks}, batch {case.batch}, queue {case.queue:,}", flush=True)
        self.workers = {kind: self.best_workers(kind) for kind in ("authors", "lightly") if self.wants(kind)}
        sides = [self.side(name) for name in case.sides if self.wants(name) and self.available(name)]
        with ended_at_exit(sides):
            take_turns(sides, case.steps, None if case.learns else 60 * self.given.minutes)
            for side in sides:
                if case.learns:
                    side.finish()
        rows = self.rows(sides)
        if case.learns:
            learned(rows, sides, self)
            for row in rows:
                row["last_by_seed"] = [row["knn"][-1]["top1"], *self.other_seeds(row["side"])]
        show(case, rows)
        return {
            "case": case.name,
            "networks": networks,
            "machine": machine(),
            "batch": case.batch,
            "queue": case.queue,
            "workers": self.workers,
            "sides": rows,
        }

    def wants(self, name: str) -> bool:
        """Whether this side is in the case, was asked for, and can run here."""
        kind = name.split(",", maxsplit=1)[0]
        asked = kind == "tinyseed" or self.given.sides in name
        if kind == "lightly" and self.case.learns:
            asked = self.given.lightly_learns
        there = any(side.startswith(kind) for side in self.case.sides)
        return there and asked and (kind != "lightly" or self.given.lightly_python is not None)

    def available(self, name: str) -> bool:
        """Whether this version and this processor have it."""
        fields = {each.name for each in dataclasses.fields(SeedSettings)}
        if "cached" in name:
            return "cache_views" in fields
        return native_bf16(on_gpu=False) or name not in (
            "authors, tuned",
            "lightly, bf16",
            "tinyseed, float32",
        )

    def best_workers(self, kind: str) -> int:
        """The number of DataLoader workers with which another loop is fastest, by a trial of each."""
        if self.given.workers is not None:
            return self.given.workers
        place = kind, self.case.size > 80
        if place in self.trials:
            return self.trials[place]
        steps = max(2, self.case.steps // 2)
        sides = {workers: self.side(kind, workers=workers, total=3 * steps) for workers in (0, 1, 2)}
        with ended_at_exit(list(sides.values())):
            take_turns(list(sides.values()), steps)
        trials = {workers: min(side.turns) for workers, side in sides.items()}
        best = self.trials[place] = min(trials, key=trials.__getitem__)
        said = ", ".join(
            f"{count}: {1000 * seconds / self.case.batch:.2f}" for count, seconds in trials.items()
        )
        print(f"    {kind}, ms/image by workers ({said}): {best} taken", flush=True)
        return best

    def side(self, name: str, workers: int | None = None, total: int | None = None, seed: int = 0) -> Side:
        """The command of a side."""
        kind, _, variant = name.partition(", ")
        trial, self.seed = workers is not None, seed
        out = self.place(name, seed)
        out = out.with_name(f"{out.name}-trial-{workers}") if trial else out
        count = self.workers[kind] if kind != "tinyseed" and not trial else workers or 0
        snapshots = self.case.learns and not trial
        command = {"authors": self.authors, "lightly": self.lightly, "tinyseed": self.ours}[kind](
            variant, out, count, snapshots
        )
        steps = (
            self.steps_per_epoch * self.epochs
            if self.case.learns
            else self.case.steps * (self.given.turns + 1)
        )
        return Side(
            name,
            ["env", f"PYTHONPATH={source()}", *command],
            out.with_suffix(".log"),
            batch=self.case.batch,
            total=total or steps,
        )

    def other_seeds(self, name: str) -> Iterator[float]:
        """The last epoch's k-NN of a side with other seeds; nobody else takes a turn meanwhile."""
        for seed in range(1, self.given.seeds):
            side = self.side(name, seed=seed)
            with ended_at_exit([side]):
                side.turn(side.total)
                side.finish()
            last = self.epochs, snapshot(self.place(name, seed), self.epochs), 0.0
            (point,) = self.judge.curve(self.case.student, [last])
            print(f"    {name}: seed {seed}, {point['top1']:.1f} %", flush=True)
            yield point["top1"]

    @cached_property
    def judge(self) -> Judge:
        """k-NN on the test photos."""
        return Judge(clothing("train"), clothing("test"), self.case.size)

    def place(self, name: str, seed: int = 0) -> Path:
        """Where a side writes to."""
        return self.folder / (name.replace(", ", "-") + (f"-seed-{seed}" if seed else ""))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training photos."""
        return len(list(self.photos.rglob("*.jpg"))) // self.case.batch

    def authors(self, variant: str, out: Path, workers: int, snapshots: bool) -> list[str]:
        """The restated published loop."""
        case = self.case
        numbers = {"size": case.size, "batch": case.batch, "queue": case.queue, "epochs": self.epochs}
        numbers |= {"workers": workers, "seed": self.seed, "lr": LR}
        names = {"data": self.photos, "out": out, "teacher": self.teacher, "student": case.student}
        flags = [f"--{name}={value}" for name, value in (names | numbers).items()]
        flags += ["--tuned"] * (variant == "tuned") + ["--snapshots"] * snapshots
        return [sys.executable, str(HERE / "authors_side.py"), *flags]

    def ours(self, variant: str, out: Path, workers: int, snapshots: bool) -> list[str]:
        """The loop of tinyseed itself."""
        del workers  # its own choice
        case = self.case
        fields = {
            "data": [str(self.photos)],
            "val_data": [str(photos(self.folder.parent, 0, "test"))],
            "validation_images": 16,
            "evaluate_every": 10000,
            "out": str(out),
            "teacher": str(self.teacher),
            "student": case.student,
            "image_size": case.size,
            "batch_size": case.batch,
            "queue_size": case.queue,
            "epochs": self.epochs,
            "lr": LR,
            "schedule": "cosine-epoch",
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            "precision": "32" if variant == "float32" else "auto",
        }
        if case.teacher == VIT:
            fields |= {"teacher_weights": "random"}
        if variant == "cached":
            fields |= {"cache_views": CACHED_VIEWS, "cache": str(out) + "-cache"}
        flags = ["--snapshots"] * snapshots + ["--fill"]
        return [sys.executable, str(HERE / "tinyseed_side.py"), json.dumps(fields), *flags]

    def lightly(self, variant: str, out: Path, workers: int, snapshots: bool) -> list[str]:
        """LightlyTrain's, in its own environment."""
        case = self.case
        teacher = {"teacher": VIT_OF_LIGHTLY}
        if case.teacher != VIT:
            teacher = {
                "teacher": f"timm/{case.teacher.replace('clothing', 'resnet18')}",
                "teacher_weights": str(self.teacher_backbone),
                "teacher_args": {"num_classes": 0},
            }
        arguments = {
            "out": str(out),
            "data": str(self.photos),
            "model": f"timm/{case.student}",
            "method": case.lightly,
            "method_args": teacher | {"queue_size": case.queue},
            "transform_args": {"image_size": [case.size, case.size]},
            "model_args": {"pretrained": False},
            "batch_size": case.batch,
            "epochs": self.epochs,
            "num_workers": workers,
            "seed": self.seed,
            "accelerator": "cpu",
            "precision": "bf16-mixed" if variant == "bf16" else "32-true",
        }
        flags = [f"--snapshots={out}"] if snapshots else []
        return [str(self.given.lightly_python), str(HERE / "lightly_side.py"), json.dumps(arguments), *flags]

    def rows(self, sides: list[Side]) -> list[dict]:
        """Milliseconds per image of each side, and ratios within the turns to tinyseed's two precisions."""
        by_name = {side.name: side for side in sides}
        rows = []
        for side in sides:
            per_image = [1000 * seconds / side.batch for seconds in side.turns]
            row = {
                "side": side.name,
                "ms_per_image": statistics.median(per_image),
                "best_ms_per_image": min(per_image),
                "seconds_to_first_step": side.started,
                "turns": per_image,
            }
            for name in ("tinyseed", "tinyseed, float32", "tinyseed, cached"):
                if name in by_name and name != side.name:
                    ratios = [a / b for a, b in zip(side.turns, by_name[name].turns, strict=False)]
                    row[f"times {name}"] = statistics.median(ratios)
            rows.append(row)
        return rows


def show(case: Case, rows: list[dict]) -> None:
    compared = ("tinyseed", "tinyseed, float32", "tinyseed, cached")
    header = f"  {'':26}{'ms/image':>9}{'best':>9}{'images/s':>9}{'to step 1':>10}"
    print(f"{header}  times as long as {' / '.join(compared)}")
    for row in rows:
        ratios = " / ".join(
            f"{row[f'times {name}']:.2f}" if f"times {name}" in row else "—" for name in compared
        )
        aim = f"   aim ≥ {case.aims[row['side']]}" if row["side"] in case.aims else ""
        speed = f"{row['ms_per_image']:9.3f}{row['best_ms_per_image']:9.3f}{1000 / row['ms_per_image']:9.0f}"
        print(f"  {row['side']:26}{speed}{row['seconds_to_first_step']:8.1f} s  {ratios}{aim}")
        if "knn" in row:
            points = (
                f"{point['epoch']}: {point['top1']:.1f} % ({point['seconds']:.0f} s)" for point in row["knn"]
            )
            reached = f"{row['seconds_to_target']:.0f} s" if row["seconds_to_target"] else "not reached"
            print(f"      {row['seconds']:.0f} s in all; k-NN by epoch {', '.join(points)}")
            seeds = ", ".join(f"{top1:.1f}" for top1 in row["last_by_seed"])
            print(f"      k-NN after the last epoch by seed: {seeds} %")
            print(f"      to 90 % of the teacher's, {row['target']:.1f} %: {reached}")


def photos(folder: Path, short: int, split: str = "train") -> Path:
    """The package's photos as JPEG files by class; `short` enlarges the short side."""
    path = folder / f"{split}-{short or 'as-they-are'}"
    if short:
        return enlarged(path)
    if not path.exists():
        source = open_source([str(clothing(split))])
        for index in range(len(source)):
            place = path / f"{source.labels[index]:02d}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:05d}.jpg").write_bytes(source.read(index))
    return path


def teachers(case: Case, folder: Path) -> tuple[Path | str, Path | None]:
    """The teacher as tinyseed reads it, and the weights of its backbone alone."""
    if case.teacher == VIT:
        return VIT, None
    spec = CLOTHING_TEACHER
    if case.teacher != "clothing":
        spec = teacher_with_head(
            StepCase(case.name, case.teacher, case.student, case.size, case.batch, case.queue, 0), folder
        )
    weights = folder / f"backbone-{case.teacher}.pth"
    if not weights.exists():
        torch.save(load_model(spec).backbone.network.state_dict(), weights)
    return spec, weights


def learned(rows: list[dict], sides: list[Side], measurement: "Measurement") -> None:
    """Add k-NN on the test photos by epoch, and the seconds to 90 % of the teacher's."""
    case, per_epoch = measurement.case, measurement.steps_per_epoch
    target = 0.9 * measurement.judge.top1(load_model(CLOTHING_TEACHER).backbone)
    for row, side in zip(rows, sides, strict=True):
        times, out = side.times(), measurement.place(side.name)
        epochs = [
            epoch for epoch in range(1, measurement.epochs + 1) if (measurement.epochs - epoch) % 2 == 0
        ]
        curve = measurement.judge.curve(
            case.student, [(epoch, snapshot(out, epoch), times[epoch * per_epoch - 1]) for epoch in epochs]
        )
        row |= {"seconds": times[-1], "knn": curve, "target": target}
        row["seconds_to_target"] = first_above(curve, target)


def snapshot(out: Path, epoch: int) -> Path:
    """Where a side keeps its student."""
    ours = out.with_name(f"{out.name}-epoch-{epoch}.pth")
    return ours if ours.exists() else out / f"epoch-{epoch}.pth"


def source() -> Path:
    return Path(tinyseed.__file__).parents[1]


if __name__ == "__main__":
    main()
