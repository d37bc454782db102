"""Kill tinyseed at random instants, run the same command again, and compare with the unbroken result bit for bit.

    python tests/faults/soak.py                       every command, 30 trials each (`make soak`)
    python tests/faults/soak.py --kills 2 distill knn

Each trial is a fork of a process that has imported everything. Most are killed by SIGKILL, every fourth one is asked to
stop by SIGTERM, SIGINT or SIGHUP to its whole group. Afterwards no process of its group may be left.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

import tinyseed
from tinyseed import cli
from tinyseed.signals import signals_held
from tinyseed.torchvision_ops import ensure_torchvision

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
TIMES = {"seconds", "minutes", "images_per_s", "data_wait"}


@dataclass(frozen=True)
class Command:
    """A command line without its output folder, and whether it needs --resume to go on."""

    arguments: tuple[str, ...]
    resumed_by_flag: bool = False


@dataclass
class Outcome:
    """What came of the trials of a command."""

    kills: int = 0
    stops: int = 0
    finished: int = 0
    equal: int = 0
    failures: tuple[str, ...] = ()


def main() -> None:
    """Run the trials, print a table, exit with 1 if one failed."""
    parser = argparse.ArgumentParser(
        description="Kill tinyseed at random instants and compare with unbroken runs."
    )
    parser.add_argument("--kills", type=int, default=30, help="trials per command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("commands", nargs="*", help="by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ensure_torchvision()
    import timm  # noqa: F401  (imported once, for all trials; after tinyseed has made torchvision importable)

    folder = Path(tempfile.mkdtemp(prefix="tinyseed-soak-"))
    failed = False
    try:
        commands = prepare(folder)
        print(
            f"{'command':<14}{'kills':>7}{'stops':>7}{'finished before':>17}{'equal':>7}{'failures':>10}",
            flush=True,
        )
        for name in options.commands or commands:
            outcome = soak(
                folder, name, commands[name], options.kills, random.Random(f"{options.seed} {name}")
            )
            counts = f"{outcome.kills:>7}{outcome.stops:>7}{outcome.finished:>17}{outcome.equal:>7}"
            print(f"{name:<14}{counts}{len(outcome.failures):>10}", flush=True)
            for failure in outcome.failures:
                print(f"    {failure}", flush=True)
            failed = failed or bool(outcome.failures)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(failed)


def prepare(folder: Path) -> dict[str, Command]:
    """Draw the images, train the model that is evaluated, and name the commands."""
    images, tables, boxes = folder / "images", folder / "tables", folder / "boxes"
    draw_images(images)
    write_table(images, tables)
    draw_boxes(boxes)
    common = (
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--epochs",
        "2",
        "--log-every",
        "1",
        "--precision",
        "32",
    )
    data = ("--data", str(images), "--evaluate-every", "1", *common)
    network = ("--teacher", "test_resnet", "--teacher-weights", "random", "--student", "test_resnet")
    distill = ("distill", *data, *network, "--projector", "linear")
    run(folder, (*distill, "--workers", "0", "--out", str(folder / "model")), folder / "cache")
    splits = ("--train-data", str(images), "--test-data", str(images))
    evaluate = ("--model", str(folder / "model"), "--workers", "0")
    training = ("--epochs", "2", "--batch-size", "8", "--precision", "32")
    detect = ("--format", "voc", "--train-data", str(boxes), "--schedule", "2", "--batch-size", "2")
    return {
        "distill": Command((*distill, "--workers", "0"), resumed_by_flag=True),
        "distill-2": Command((*distill, "--workers", "2"), resumed_by_flag=True),
        "pretrain": Command(
            ("pretrain", "moco-v2", *data, "--backbone", "test_resnet", "--workers", "0"),
            resumed_by_flag=True,
        ),
        "knn": Command(("evaluate", "knn", *evaluate, *splits)),
        "knn-parquet": Command(
            ("evaluate", "knn", *evaluate, "--train-data", str(tables), "--test-data", str(images))
        ),
        "linear": Command(("evaluate", "linear", *evaluate, *splits)),
        "semi": Command(("evaluate", "semi", *evaluate, *splits, *training, "--fraction", "0.5", "1")),
        "transfer": Command(("evaluate", "transfer", *evaluate, *splits, *training)),
        "detect": Command(
            ("evaluate", "detect", *evaluate[:2], *detect, "--image-size", "64", "--workers", "2")
        ),
    }


def draw_images(folder: Path) -> None:
    """48 pictures of two classes, squares and discs on noise."""
    generator = np.random.default_rng(0)
    for name, method in (("disc", ImageDraw.ImageDraw.ellipse), ("square", ImageDraw.ImageDraw.rectangle)):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            picture = Image.fromarray(generator.integers(0, 120, (40, 40, 3), dtype=np.uint8))
            x, y, side = (int(value) for value in generator.integers(2, 18, 3))
            method(ImageDraw.Draw(picture), (x, y, x + side + 4, y + side + 4), fill=(200, 60, 40))
            picture.save(folder / name / f"{number:02d}.jpg")


def write_table(images: Path, folder: Path) -> None:
    """The same pictures as a Parquet file, which the cache unpacks."""
    folder.mkdir()
    files = sorted(images.glob("*/*.jpg"))
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "label": [file.parent.name for file in files],
    }
    pq.write_table(pa.table(columns), folder / "train.parquet")


def draw_boxes(folder: Path) -> None:
    """Six annotated pictures in VOC's layout."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, numbers in (("trainval", range(4)), ("test", range(4, 6))):
        (folder / f"ImageSets/Main/{split}.txt").write_text("".join(f"{number}\n" for number in numbers))
        for number in numbers:
            noise = np.random.default_rng(number).integers(90, 140, (64, 64, 3), dtype=np.uint8)
            picture, corner = Image.fromarray(noise), 4 + 5 * number
            ImageDraw.Draw(picture).rectangle((corner, corner, corner + 24, corner + 24), fill=(220, 50, 30))
            picture.save(folder / f"JPEGImages/{number}.jpg")
            ends = {"xmin": corner + 1, "ymin": corner + 1, "xmax": corner + 25, "ymax": corner + 25}
            box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in ends.items())
            objects = f"<object><name>red</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
            (folder / f"Annotations/{number}.xml").write_text(f"<annotation>{objects}</annotation>")


def soak(folder: Path, name: str, command: Command, trials: int, chance: random.Random) -> Outcome:
    """Trials of one command in one output folder, each against the result of an unbroken run."""
    out, cache = folder / f"out-{name}", folder / f"cache-{name}"
    arguments = (*command.arguments, "--out", str(out))
    began = time.monotonic()
    run(folder, arguments, cache)
    seconds = time.monotonic() - began
    expected = results(out)
    outcome = Outcome()
    for trial in range(trials):
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        gentle = trial % 4 == 3
        number = chance.choice(STOPPING) if gentle else signal.SIGKILL
        after = chance.uniform(0, seconds)
        problem = interrupted(folder, arguments, cache, number, after)
        outcome.kills += not gentle
        outcome.stops += gentle
        finished = finished_before(out, command)
        outcome.finished += finished
        resumes = command.resumed_by_flag and (out / "config.json").exists()
        if not problem and not (finished and command.resumed_by_flag):
            problem = told(lambda again=resumes: run(folder, (*arguments, *["--resume"] * again), cache))
        if not problem:
            problem = difference(expected, results(out))
        outcome.equal += not problem
        if problem:
            outcome.failures += (f"trial {trial}, {number.name} after {after:.2f} s: {problem}",)
    return outcome


def finished_before(out: Path, command: Command) -> bool:
    """Whether the command had finished when it was killed."""
    pattern = "summary.json" if command.resumed_by_flag else "evaluate-*.json"
    return any(out.glob(pattern)) and (not command.resumed_by_flag or (out / "report.html").exists())


def told(call: Callable[[], object]) -> str:
    """The message of a failure, empty if there is none."""
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def start(arguments: Sequence[str], cache: Path, log: Path) -> int:
    """Run a command in a fork that leads a group of its own; returns its process number."""
    with signals_held():
        process = os.fork()
        if process == 0:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # until the command handles it, as for one that just starts
    if process:
        return process
    code = 70
    try:
        os.setsid()
        os.environ["TINYSEED_CACHE"] = str(cache)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        cli.main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001  (the parent reads it in the log)
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(folder: Path, arguments: Sequence[str], cache: Path) -> None:
    """Run a command to its end; RuntimeError if it fails."""
    log = folder / "log"
    _, status = os.waitpid(start(arguments, cache, log), 0)
    if status:
        lines = log.read_text().strip().splitlines()
        raise RuntimeError(f"exit {os.waitstatus_to_exitcode(status)}: {' | '.join(lines[-3:])}")


def interrupted(
    folder: Path, arguments: Sequence[str], cache: Path, number: signal.Signals, after: float
) -> str:
    """Signal a command after so many seconds; returns what was wrong with its end."""
    log = folder / "log"
    process = start(arguments, cache, log)
    time.sleep(after)
    if number == signal.SIGKILL:
        os.kill(process, number)
    else:
        signal_group(process, number)
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if number != signal.SIGKILL and code not in (0, 128 + number, -number):  # -number: before it had begun
        return f"exit {code}, not {128 + number}: {log.read_text().strip().splitlines()[-1:]}"
    if "Traceback" in log.read_text():
        return "a traceback"
    return "" if group_ended(process) else "processes are left"


def signal_group(process: int, number: signal.Signals) -> None:
    """Signal a process and its workers, once it leads a group."""
    try:
        os.killpg(process, number)
    except ProcessLookupError:
        os.kill(process, number)


def group_ended(group: int) -> bool:
    """Whether no process of a group is left after a few seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


def results(out: Path) -> dict[str, Any]:
    """What a command has left that must not depend on interruptions: weights, metrics and reports without times."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        if file.suffix == ".safetensors":
            found[str(file.relative_to(out))] = weights(file)
        elif file.suffix == ".json" and file.name not in ("lineage.json", "config.json"):
            found[str(file.relative_to(out))] = timeless(json.loads(file.read_text()))
        elif file.name == "metrics.jsonl":
            found[file.name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
    return found


def weights(file: Path) -> str:
    """A digest of a file's tensors and metadata; the latter's order in the file is not fixed."""
    with safe_open(file, "numpy") as opened:
        state = sha256(json.dumps(opened.metadata(), sort_keys=True).encode())
        for name in sorted(opened.keys()):
            tensor = opened.get_tensor(name)
            state.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return state.hexdigest()


def timeless(value: Any) -> Any:
    """JSON without what depends on the clock."""
    if isinstance(value, dict):
        return {name: timeless(entry) for name, entry in value.items() if name not in TIMES}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """The names of the files that differ, empty if none does."""
    if not expected:
        return "the unbroken run has left nothing to compare"
    names = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    return f"differs: {', '.join(sorted(names))}" if names else ""


if __name__ == "__main__":
    assert tinyseed.__file__ is not None
    main()
