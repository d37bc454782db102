"""Damaged COCO and VOC annotations, thousands of them: each is refused in one line, or what is read can be used.

`python tests/faults/mutate_annotations.py 2000` tries so many, half of them of each format; the tests try fewer. Each
file is a function of its number, so that a failure can be repeated: `… 1 --first 1234`.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 48
MOST_SECONDS = 5.0
MOST_BYTES = 3 * 2**29
AT_ONCE = 250

DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]

ODD = (
    *(None, True, False, 0, 1, 2, 3, -1, 0.5, 47.9, 48, 1e-7, 1e4, 1e9, -1e9, 1e308, -1e308, 10**30, 2**63),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "7",
        "48",
        "1e999",
        "nan",
        "text",
        "\ud800",
        "a\0b",
    ),
    *(
        "../0.jpg",
        "/etc/hostname",
        r"C:\0.jpg",
        r"sub\0.jpg",
        "x" * 300,
        "x" * 70000,
        "\u202egnp.exe",
        "\x1b[31m",
    ),
    *([], [[]], {}, {"a": 1}, [1, 2, 3], [1, 2, 3, 4], [1, 1, 9, 1, 9, 9], DEEP, [float("nan")] * 6),
    *(
        [[1e9, 1e9, -1e9, 1e9, 0, 0]],
        [[0, 0, 48, 0] * 4000],
        [[5, 5, 20, 5, 20]],
        [["a"] * 6],
        [[5, 5, 2e9, 2**62, 0, 9]],
    ),
    *(
        {"size": [SIDE, SIDE], "counts": counts}
        for counts in ("PPP", "`" * 99, "\udc80", "o" * 500, [SIDE**2], [-1, 2305])
    ),
    *(
        {"size": [2**40, 2**40], "counts": [2**80]},
        {"size": None, "counts": None},
        {"counts": "0"},
        b"\xff".decode("latin-1"),
    ),
)


def make_images(folder: Path) -> None:
    """Four small images."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{number}.jpg")


def coco_document() -> dict[str, Any]:
    """A valid one, with masks of each kind."""
    from pycocotools import mask

    square = np.zeros((SIDE, SIDE), np.uint8, order="F")
    square[6:24, 5:25] = 1
    packed = mask.encode(square)["counts"].decode()
    runs = [5 * SIDE + 6, 18, *([SIDE - 18, 18] * 19), SIDE - 24 + 23 * SIDE]
    masks = ([[5, 6, 25, 6, 25, 24, 5, 24]], {"size": [SIDE, SIDE], "counts": packed})
    masks += ({"size": [SIDE, SIDE], "counts": runs}, [[5, 6, 25, 6, 25, 24], [1, 1, 9, 1, 9, 9]])
    images = [{"id": 10 + i, "file_name": f"{i}.jpg", "width": SIDE, "height": SIDE} for i in range(4)]
    annotations = [
        {
            "id": i,
            "image_id": 10 + i,
            "category_id": 1 + i % 2,
            "bbox": [5, 6, 20, 18],
            "area": 360,
            "iscrowd": 0,
        }
        | {"segmentation": masks[i]}
        for i in range(4)
    ]
    categories = [{"id": 1, "name": "car", "supercategory": "none"}, {"id": 2, "name": "bus"}]
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def voc_document() -> dict[str, Any]:
    """A valid one, as fields; a list stands for several elements of the same name."""
    box = {"xmin": 6, "ymin": 7, "xmax": 25, "ymax": 24}
    part = {"name": "head", "bndbox": box}
    objects = [
        {"name": "car", "pose": "Left", "truncated": 0, "difficult": 0, "bndbox": box},
        {"name": "bus", "difficult": 1, "part": [part], "bndbox": dict(box)},
    ]
    size = {"width": SIDE, "height": SIDE, "depth": 3}
    return {"folder": "VOC2007", "filename": "0.jpg", "size": size, "segmented": 0, "object": objects}


def as_xml(name: str, content: Any) -> str:
    """Fields as elements; texts are written as they are, even where that is not well-formed."""
    if isinstance(content, list):
        return "".join(as_xml(name, one) for one in content[:99])
    if isinstance(content, dict):
        content = "".join(as_xml(str(key), value) for key, value in content.items())
    return f"<{name}>{content}</{name}>"


def mutated(document: Any, choices: random.Random) -> Any:
    """A copy with one to three of its values replaced, removed, doubled, moved or made a number of another kind."""
    document = deepcopy(document)
    for _ in range(choices.randint(1, 3)):
        places = [(parent, key) for parent in containers(document) for key in keys(parent)]
        if not places:
            return document
        parent, key = choices.choice(places)
        match choices.randrange(8):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.insert(key, deepcopy(parent[key]))
            case 2:
                other, at = choices.choice(places)
                if at in keys(other):
                    parent[key] = deepcopy(other[at])
            case 3:
                parent[key] = str(parent[key])
            case 4:
                parent[key] = [parent[key]]
            case _:
                parent[key] = choices.choice(ODD)
    return document


def containers(document: Any) -> list[Any]:
    """All lists and dicts in it, itself included; deep ones of the odd values are left as they are."""
    found, todo = [], [(document, 0)]
    while todo:
        one, depth = todo.pop()
        if isinstance(one, list | dict) and depth < 8:
            found.append(one)
            todo += [(one[key], depth + 1) for key in list(keys(one))[:50]]
    return found


def keys(container: Any) -> Any:
    return range(len(container)) if isinstance(container, list) else list(container)


def mutated_bytes(data: bytes, choices: random.Random) -> bytes:
    """A copy cut off, with bytes changed, removed or repeated, or in another encoding."""
    made, size = bytearray(data), len(data)
    for _ in range(choices.randint(1, 4)):
        at = choices.randrange(max(1, len(made)))
        length = min(choices.choice((1, 1, 2, 5, 40, size // 3)), 2000)
        match choices.randrange(7):
            case 0:
                del made[at : at + length]
            case 1:
                made[at:at] = made[at : at + length]
            case 2:
                made[at : at + 1] = bytes([choices.randrange(256)])
            case 3:
                made[at:at] = choices.choice(
                    (b"\xef\xbb\xbf", b"\r\n", b"\0", b"NaN", b"-", b"1e999", b"[", b"<", b"}", b"</")
                )
            case 4:
                del made[at:]
            case 5:
                other = choices.randrange(max(1, len(made)))
                made[at : at + length] = made[other : other + length]
            case _:
                encoding = choices.choice(("utf-16", "utf-8-sig", "utf-16-be", "utf-32"))
                made = bytearray(bytes(made).decode("utf-8", "replace").encode(encoding))
    return bytes(made)


def coco_case(choices: random.Random) -> bytes:
    """The bytes of a damaged COCO file."""
    document = coco_document()
    if choices.random() < 0.8:
        document = mutated(document, choices)
    data = json.dumps(document).encode()
    return mutated_bytes(data, choices) if choices.random() < 0.35 else data


def voc_case(choices: random.Random) -> bytes:
    """The bytes of a damaged VOC file."""
    document = voc_document()
    if choices.random() < 0.8:
        document = mutated(document, choices)
    data = as_xml("annotation", document).encode("utf-8", "replace")
    return mutated_bytes(data, choices) if choices.random() < 0.35 else data


def read_coco_case(data: bytes, folder: Path) -> str:
    """Read them as the annotations of a folder, and use them."""
    from tinyseed.detection.coco import read_coco

    if not folder.is_dir():
        make_images(folder / "train")
        (folder / "annotations").mkdir()
    (folder / "annotations/instances_train.json").write_bytes(data)
    return use(lambda: read_coco(str(folder), "train", masks=True), masks=True)


def read_voc_case(data: bytes, folder: Path, listed: bytes = b"0\n1\n") -> str:
    """Read them as the annotation of one of two images, and use them."""
    from tinyseed.detection.voc import read_voc

    if not folder.is_dir():
        make_images(folder / "JPEGImages")
        (folder / "Annotations").mkdir()
        (folder / "ImageSets/Main").mkdir(parents=True)
        (folder / "Annotations/1.xml").write_text(as_xml("annotation", voc_document()))
    (folder / "ImageSets/Main/train.txt").write_bytes(listed)
    (folder / "Annotations/0.xml").write_bytes(data)
    return use(lambda: read_voc([str(folder)], "train"), masks=False)


def use(read: Callable[[], Any], *, masks: bool) -> str:
    """Read annotations, make a training batch and score a detection: "read", "changed" or "refused"."""
    from tinyseed.detection.batches import Views, training_batch
    from tinyseed.detection.score import average_precision
    from tinyseed.errors import InputError

    try:
        split = read()
    except InputError as error:
        return "refused" if "\n" not in str(error) else f"refused in several lines: {error}"
    for image in split.images:
        for one in image.instances:
            x1, y1, x2, y2 = one.box
            assert 0 <= x1 < x2 <= image.width, one
            assert 0 <= y1 < y2 <= image.height, one
            assert 0 <= one.area <= image.width * image.height, one
    assert all(isinstance(name, str) and name.strip() for name in split.classes)
    assert split.fingerprint
    if split.trainable:
        batch = training_batch(split.trainable, 0, Views(2, (64,), masks=masks))
        assert all((target["boxes"][:, 2:] > target["boxes"][:, :2]).all() for target in batch.targets)
        found = {"image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 18], "score": 0.5}
        scores = average_precision(split, [found], "bbox")
        assert 0 <= scores.ap <= 100.00001, scores
    return "changed" if split.issues.lines() else "read"


def try_one(number: int, folder: Path) -> str:
    """Even numbers are COCO files, odd ones VOC files."""
    choices = random.Random(number)
    if number % 2:
        listed = b"0\n1\n" if choices.random() < 0.8 else mutated_bytes(b"0.jpg 1\n1 -1\n", choices)
        return "VOC " + read_voc_case(voc_case(choices), folder / "voc", listed)
    return "COCO " + read_coco_case(coco_case(choices), folder / "coco")


def child(first: int, count: int, folder: Path) -> None:
    """Try some and write what became of them, a line each; a crash leaves its number as the last line."""
    import tinyseed.detection.score  # noqa: F401  (importing takes seconds)

    read_coco_case(json.dumps(coco_document()).encode(), folder / "warm")
    with (folder / "results.txt").open("a") as results:
        for number in range(first, first + count):
            print(f"begin {number}", file=results, flush=True)
            began = time.process_time()
            outcome = try_one(number, folder)
            seconds = time.process_time() - began
            print(f"{outcome}\t{seconds if seconds > MOST_SECONDS else 0}", file=results, flush=True)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"peak {peak}", file=results, flush=True)


def main(count: int, first: int = 0) -> Counter[str]:
    """Try so many, in processes of their own, and print how many were read, changed and refused.

    Raises:
        AssertionError: one was neither, killed its process, or took too much time or memory.
    """
    outcomes: Counter[str] = Counter()
    wanted = {f"{kind} {what}" for kind in ("COCO", "VOC") for what in ("read", "changed", "refused")}
    context = multiprocessing.get_context("fork" if "torch" not in sys.modules else "spawn")
    for start in range(first, first + count, AT_ONCE):
        with tempfile.TemporaryDirectory() as folder:
            process = context.Process(
                target=child, args=(start, min(AT_ONCE, first + count - start), Path(folder))
            )
            process.start()
            process.join()
            *lines, last = (Path(folder) / "results.txt").read_text().splitlines()
        assert process.exitcode == 0, f"{last}: exit code {process.exitcode}"
        assert int(last.split()[1]) < MOST_BYTES, f"{last} bytes of memory"
        done = [line.split("\t") for line in lines if not line.startswith("begin")]
        slow = [(start + index, seconds) for index, (_, seconds) in enumerate(done) if float(seconds)]
        assert not slow, f"too slow: {slow}"
        outcomes.update(outcome for outcome, _ in done)
    assert outcomes.total() == count
    assert outcomes.keys() <= wanted, outcomes
    print(", ".join(f"{number:,} {outcome}" for outcome, number in sorted(outcomes.items())))
    return outcomes


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    main(given.count, given.first)
