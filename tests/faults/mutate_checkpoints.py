"""Damaged checkpoints, exported models and run folders, thousands of them: each is refused in one line, or can be used.

`python tests/faults/mutate_checkpoints.py 2000` tries so many; the tests try fewer. Each file is a function of its
number, so that a failure can be repeated: `… 1 --first 1234`.
"""

import argparse
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

MOST_SECONDS = 5.0
MOST_BYTES = 3 * 2**29
AT_ONCE = 250
NETWORK = "test_resnet"

TEXTS = (
    "",
    " ",
    "-1",
    "0",
    "nan",
    "inf",
    "1e99",
    "9" * 30,
    "2000000000000",
    "none",
    "mlp-bn-3",
    "x" * 5000,
    "\x1b[31m\n",
)
NUMBERS = (0, 1, -1, 255, 300, 2**16, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    float("nan"),
    10**400,
    "auto",
    "x",
    [],
    [1, 2],
    {},
    {"a": None},
)


class Originals:
    """Whole files of each kind, built once."""

    def __init__(self) -> None:
        from tinyseed.checkpoints.saved import save_encoder
        from tinyseed.models.backbones import build_backbone
        from tinyseed.models.encoder import Encoder, build_projector

        backbone = build_backbone(NETWORK, seed=0)
        self.state = dict(backbone.network.state_dict())
        with tempfile.TemporaryDirectory() as folder:
            save_encoder(Path(folder), Encoder(backbone, build_projector("mlp", backbone.width, 8, seed=0)))
            self.exported = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        self.zipped, self.plain = _saved(self.state), _saved(self.state, zipped=False)
        self.tensors = save(self.state)
        self.checkpoint = {"format": 1, "step": 3, "elapsed": 1.5, "images": 9, "module": self.state}
        self.checkpoint |= {"method": {"queue": torch.ones(4, 2)}, "precision": {}}
        self.checkpoint |= {
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}
        }


def _saved(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, doubled, swapped or removed; more often at the beginning and the end, where structure is."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 30))):
        place = chance.choice((chance.randrange(len(changed)), chance.randrange(min(400, len(changed)))))
        place = place if chance.random() < 0.7 else len(changed) - 1 - place
        match chance.randrange(6):
            case 0:
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                changed[place : place + 4] = struct.pack("<q", chance.choice(NUMBERS))[:4]
            case 2:
                changed[place : place + 8] = struct.pack("<q", chance.choice(NUMBERS))
            case 3:
                del changed[place : place + chance.randrange(1, 64)]
            case 4:
                changed[place:place] = chance.randbytes(chance.randrange(1, 16))
            case _:
                changed[place:] = changed[place:] if chance.random() < 0.8 else b""
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def odd_tensor(tensor: torch.Tensor, chance: random.Random) -> object:
    """A tensor, or something else, in place of one of a state dict."""
    changes: tuple[Callable[[], object], ...] = (
        lambda: tensor.to("meta"),
        lambda: tensor.float().to_sparse() if tensor.ndim else tensor,
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.int8),
        tensor.bool,
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: torch.full_like(tensor.float(), float(chance.choice(("nan", "inf", "-inf")))),
        lambda: torch.zeros(()).expand(10**6, 10**6),
        lambda: torch.zeros(10**12, 0),
        lambda: torch.empty(0),
        lambda: tensor[None],
        lambda: tensor.half() if tensor.is_floating_point() else tensor,
        lambda: tensor.to(torch.float8_e4m3fn) if tensor.is_floating_point() else tensor,
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: chance.choice(VALUES),
    )
    return chance.choice(changes)()


def odd_state(state: dict[str, torch.Tensor], chance: random.Random) -> dict[Any, Any]:
    """A state dict with some of its tensors replaced, renamed, lost or added."""
    changed: dict[Any, Any] = dict(state)
    for name in chance.sample(sorted(state), chance.choice((1, 1, 3, len(state) // 2))):
        match chance.randrange(5):
            case 0:
                del changed[name]
            case 1:
                changed[chance.choice((name + "\u202e", 7, None, "x" * 3000, "head." + name))] = changed.pop(
                    name
                )
            case _:
                changed[name] = odd_tensor(state[name], chance)
    return changed


def _lying_pickle(data: bytes, chance: random.Random) -> bytes:
    """A zip archive of torch.save whose pickle claims other sizes; the archive itself is in order."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(written, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, damaged(content, chance) if name.endswith("data.pkl") else content)
    return written.getvalue()


def _lying_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says something else, with a correct length."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    entry = header[chance.choice(sorted(set(header) - {"__metadata__"}))]
    entry[chance.choice(("dtype", "shape", "data_offsets"))] = chance.choice(
        ("F64", "I8", "F8_E4M3", "x", [], [2**62, 4], [-1], [0, 2**40], [2**40, 0], *VALUES[:5])
    )
    text = json.dumps(header).encode()
    length = chance.choice((len(text), len(text), len(text) + 1, 2**62, 0))
    return struct.pack("<Q", length) + text + data[8 + int.from_bytes(data[:8], "little") :]


def _lying_metadata(data: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name in chance.sample(sorted(header["__metadata__"]), chance.choice((1, 1, 2))):
        others = (
            *TEXTS,
            "vit_giant_patch14_dinov2",
            "resnet18",
            "4096",
            "100000",
            "true",
            "0.5,0.5",
            "0,0,0",
        )
        header["__metadata__"][name] = chance.choice(others)
        if chance.random() < 0.2:
            del header["__metadata__"][name]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def odd_text(lines: list[dict[str, Any]], chance: random.Random) -> bytes:
    """Lines of JSON, often with values of other kinds, or damaged bytes."""
    changed = [dict(line) for line in lines]
    if chance.random() < 0.5:
        return "".join(json.dumps(line) + "\n" for line in changed).encode()
    for line in changed:
        if chance.random() < 0.7:
            line[chance.choice([*line, "unknown"])] = chance.choice(VALUES)
    text = "".join(json.dumps(line) + "\n" for line in changed).encode()
    prefix = chance.choice((b"", b"", b"\xef\xbb\xbf", b"[1,2]\n", b"null\n", b'{"step": ', b"[" * 100_000))
    return prefix + (damaged(text, chance) if chance.random() < 0.3 else text)


def attempt(number: int, whole: Originals, folder: Path) -> Callable[[], object]:
    """The call that reads the damaged file of this number, which is written into the folder."""
    from tinyseed.checkpoints.load import load_model
    from tinyseed.checkpoints.saved import load_encoder
    from tinyseed.engine import checkpoint
    from tinyseed.engine.run_folder import Quarantine, RunFolder, open_run_folder
    from tinyseed.methods.seed import SeedSettings
    from tinyseed.models.spec import ModelSpec
    from tinyseed.report.page import write_report

    chance = random.Random(number)
    file = folder / chance.choice(("a.pth", "a.safetensors", "a.bin"))
    read: Callable[[], object] = partial(load_model, ModelSpec(file, arch=NETWORK))
    match number % 10:
        case 0:
            file.write_bytes(damaged(chance.choice((whole.zipped, whole.plain, whole.tensors)), chance))
        case 1:
            file.write_bytes(_saved(odd_state(whole.state, chance), zipped=chance.random() < 0.5))
        case 2:
            file.write_bytes(_lying_pickle(whole.zipped, chance))
        case 3:
            file.write_bytes(_lying_header(whole.tensors, chance))
        case 4:
            content = chance.choice(({"state_dict": whole.state, "epoch": chance.choice(VALUES)}, *VALUES))
            file.write_bytes(pickle.dumps(content) if chance.random() < 0.5 else _saved(content))
        case 5 | 6:
            for name, data in whole.exported.items():
                lie = chance.choice((_lying_metadata, _lying_metadata, _lying_header, damaged))
                (folder / name).write_bytes(lie(data, chance))
            read = partial(load_encoder, folder)
        case 7:
            content = dict(whole.checkpoint)
            content[chance.choice([*content, "unknown"])] = chance.choice(
                (*VALUES, odd_state(whole.state, chance))
            )
            data = _saved(content)
            file.write_bytes(damaged(data, chance) if chance.random() < 0.3 else data)
            file.rename(folder / "last.ckpt")
            read = partial(checkpoint.load, folder / "last.ckpt")
        case _:
            settings = SeedSettings(
                data=("photos",), teacher="resnet18", student="resnet10t", out=folder, resume=True
            )
            run, step = RunFolder(folder), {"step": 1, "epoch": 0, "lr": 0.1, "loss": 2.0}
            run.config.write_bytes(odd_text([{"command": "distill", **settings.as_json()}], chance))
            run.metrics.write_bytes(odd_text([step, {"step": 2, "epoch": 1, "knn_top1": 50.0}] * 3, chance))
            run.quarantine.write_bytes(
                odd_text([{"index": 1, "name": "a.jpg", "reason": "broken"}] * 2, chance)
            )
            run.summary.write_bytes(odd_text([{"steps": 2, "knn_top1": 1.0, "minutes": 1.0}], chance))
            run.lineage.write_bytes(odd_text([{"data": {"given": ["a"]}, "teacher": {"given": "b"}}], chance))

            def read() -> None:
                write_report(folder)
                run.forget_after(1)
                Quarantine(run, 10)
                open_run_folder(settings)

    return read


def outcome(call: Callable[[], object]) -> str:
    """What comes of a call: "read", "refused", or what is wrong with it."""
    from tinyseed.errors import InputError, RunError

    began = time.monotonic()
    try:
        call()
        found = "read"
    except (InputError, RunError) as error:
        text = str(error)
        found = "refused" if text.isprintable() and len(text) < 5000 else f"message {text!r:.200}"
    except BaseException as error:  # noqa: BLE001  (each is a fault)
        found = f"{type(error).__name__}: {error}"[:200]
    return found if time.monotonic() - began < MOST_SECONDS else f"took {time.monotonic() - began:.0f} s"


def main(count: int, first: int = 0) -> Counter[str]:
    """Try so many files; returns how often each outcome occurred, with the number of the first file of each fault."""
    os.environ.setdefault("TINYSEED_CACHE", tempfile.mkdtemp())
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    whole = Originals()
    for number in range(first, first + count):
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(attempt(number, whole, Path(folder)))
        outcomes[found if found in ("read", "refused") else f"file {number}: {found}"] += 1
    return outcomes


def _child(first: int, count: int, results: "multiprocessing.Queue[Any]") -> None:
    warnings.simplefilter("ignore")  # of the kinds of tensors that are made here
    outcomes = main(count, first)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if largest > MOST_BYTES:
        outcomes[f"files from {first}: {largest / 2**30:.1f} GiB of memory"] += 1
    results.put(outcomes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    context, total = multiprocessing.get_context("spawn"), Counter[str]()
    for start in range(given.first, given.first + given.count, AT_ONCE):
        results: Any = context.Queue()
        size = min(AT_ONCE, given.first + given.count - start)
        child = context.Process(target=_child, args=(start, size, results))
        child.start()
        child.join()
        total += (
            results.get()
            if child.exitcode == 0
            else Counter({f"files from {start}: died ({child.exitcode})": 1})
        )
    for what, times in total.most_common():
        print(f"{times:6}  {what}")
    sys.exit(bool(set(total) - {"read", "refused"}))
