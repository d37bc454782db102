"""Thousands of damaged image and Parquet files: none may crash, or take more than 5 s or 1.5 GiB.

`python tests/faults/mutate_images.py 6000` tries so many; the tests try a few hundred. Each file is a function of its
number, so that a failure can be repeated: `python tests/faults/mutate_images.py 1 --first 1234`.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MOST_SECONDS = 5.0
MOST_BYTES = 3 * 2**29
ADDRESS_SPACE = 6 * 2**30
VALUES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    0x7FFF,
    0x8000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x00FFFFFF,
    65500,
)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def originals() -> dict[str, list[bytes]]:
    """Small files of each format and its variants, by format."""
    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((45, 33))
    gray, palette, alpha = color.convert("L"), color.quantize(16), color.convert("RGBA")
    alpha.putalpha(gray)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 200)
    real = Image.fromarray(np.asarray(gray).astype(np.float32) / 300)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x9286] = 6, "a description", b"UNICODE\0" + b"x" * 40
    more = {"save_all": True, "append_images": [color.rotate(90)]}
    texts = [b"P3 # text\n2 2 255\n1 2 3 4 5 6 7 8 9 10 11 12\n", b"P5\n3 2\n100\nabcdef"]
    files = {
        "JPEG": [
            encoded(color, "JPEG", exif=exif),
            encoded(color, "JPEG", progressive=True),
            encoded(gray, "JPEG"),
            encoded(color.convert("CMYK"), "JPEG"),
            encoded(color, "MPO", **more),
        ],
        "PNG": [
            encoded(color, "PNG", exif=exif),
            encoded(palette, "PNG", transparency=b"\x00\x80"),
            encoded(alpha, "PNG"),
            encoded(deep, "PNG"),
            encoded(gray.convert("1"), "PNG"),
            encoded(color, "PNG", **more),
        ],
        "GIF": [encoded(palette, "GIF"), encoded(palette, "GIF", transparency=1, **more)],
        "WEBP": [
            encoded(color, "WEBP", exif=exif),
            encoded(alpha, "WEBP", lossless=True),
            encoded(color, "WEBP", **more),
        ],
        "BMP": [encoded(color, "BMP"), encoded(palette, "BMP"), encoded(gray.convert("1"), "BMP")],
        "TIFF": [encoded(color, "TIFF", exif=exif), encoded(deep, "TIFF"), encoded(real, "TIFF")]
        + [
            encoded(color, "TIFF", compression=name)
            for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")
        ]
        + [encoded(gray.convert("1"), "TIFF", compression="group4"), encoded(palette, "TIFF")],
        "PPM": [
            encoded(color, "PPM"),
            encoded(gray, "PPM"),
            encoded(gray.convert("1"), "PPM"),
            *texts,
        ],
    }
    if "AVIF" in Image.SAVE:
        files["AVIF"] = [encoded(color, "AVIF", exif=exif), encoded(alpha, "AVIF")]
    files["PARQUET"] = [parquet(color, "snappy"), parquet(color, "none"), parquet(color, "zstd")]
    return files


def parquet(image: Image.Image, compression: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [encoded(image, kind) for kind in ("JPEG", "PNG", "GIF")]
    rows = pa.array([{"bytes": each, "path": f"{at}.jpg"} for at, each in enumerate(data)])
    file = io.BytesIO()
    pq.write_table(pa.table({"image": rows, "label": ["a", "b", "a"]}), file, compression=compression)
    return file.getvalue()


def mutated(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """One to three kinds of damage; `other` is a file of the same format."""
    changed = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        at = int(rng.integers(0, min(len(changed), 64 if rng.random() < 0.4 else len(changed)) or 1))
        size = int(rng.choice([1, 2, 4]))
        match int(rng.integers(0, 8)):
            case 0:
                changed[at : at + 1] = bytes([int(rng.integers(256))])
            case 1:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << int(rng.integers(8))]) if changed else b""
            case 2:
                order = "big" if rng.random() < 0.5 else "little"
                changed[at : at + size] = (int(rng.choice(VALUES)) & 256**size - 1).to_bytes(size, order)
            case 3:
                del changed[at:]
            case 4:
                del changed[at : at + int(rng.integers(1, 32))]
            case 5:
                changed[at:at] = changed[max(0, at - int(rng.integers(1, 200))) : at] * int(
                    rng.integers(1, 4)
                )
            case 6:
                place = int(rng.integers(0, len(other)))
                changed[at:] = other[place:]
            case _:
                changed[at : at + int(rng.integers(1, 32))] = bytes(int(rng.integers(1, 32)))
    return bytes(changed)


def case(number: int, files: dict[str, list[bytes]]) -> tuple[str, bytes]:
    """The format and the damaged file of a number."""
    rng = np.random.default_rng([number, 20])
    kind = list(files)[number % len(files)]
    first, second = (files[kind][int(rng.integers(len(files[kind])))] for _ in range(2))
    return kind, mutated(first, second, rng)


def attempts(kind: str, data: bytes, folder: Path) -> list[Callable[[], object]]:
    """What tinyseed does with such a file."""
    from tinyseed.data.bands import decode_bands
    from tinyseed.data.decode import decode
    from tinyseed.data.parquet import PARQUET

    if kind != "PARQUET":
        return [lambda: decode(data), lambda: decode(data, draft_size=8), lambda: decode_bands(data, 3)]
    path = folder / "damaged.parquet"
    path.write_bytes(data)
    os.utime(path, ns=(time.time_ns(), time.time_ns()))

    def read() -> None:
        source = PARQUET.open(str(path), path)
        assert source is not None
        for at in range(min(len(source), 20)):
            decode(source.read(at))

    return [read]


def child(first: int, count: int, folder: Path) -> None:
    """Try each file and write a line about it; the line of a file that kills the process is missing."""
    from tinyseed.data.decode import BadImage
    from tinyseed.errors import InputError, RunError

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    files = originals()
    for number in range(first, first + count):
        kind, data = case(number, files)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory starts anew
        before, began, outcome = memory(), time.process_time(), "decoded"
        try:
            for place, attempt in enumerate(attempts(kind, data, folder)):
                try:
                    attempt()
                except (BadImage, InputError, RunError, OSError) as error:
                    outcome = outcome if place else "refused"
                    if "\n" in str(error) or len(str(error)) > 600:
                        outcome = f"a long message: {str(error)[:200]!r}"
        except Exception as error:  # noqa: BLE001  (this is what is looked for)
            outcome = f"{type(error).__name__}: {error}"[:200]
        line = [number, kind, outcome, round(time.process_time() - began, 3), memory() - before]
        print(json.dumps(line), flush=True)


def memory() -> int:
    """The peak of this process' memory since it was last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def main(count: int, first: int = 0) -> Counter[str]:
    """Try so many files and return how many of each format were decoded or refused.

    Raises:
        AssertionError: some crashed, took too long or too much memory, or a library wrote to the terminal.
    """
    counts: Counter[str] = Counter()
    failures: list[str] = []
    slowest, largest = 0.0, 0
    number = first
    while number < first + count:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"TINYSEED_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-W", "always", __file__, str(first + count - number)]
            command += ["--first", str(number), "--child", folder]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for _, kind, outcome, seconds, used in lines:
            slowest, largest = max(slowest, seconds), max(largest, used)
            counts[f"{kind} {outcome if outcome in ('decoded', 'refused') else 'failed'}"] += 1
        failures += [
            f"{line}"
            for line in lines
            if line[2] not in ("decoded", "refused") or line[3] > MOST_SECONDS or line[4] > MOST_BYTES
        ]
        number += len(lines)
        if done.stderr:
            failures.append(f"on the terminal before {number}: {done.stderr[-500:]}")
        if number < first + count:
            failures.append(f"{number} ended the process with {done.returncode}")
            number += 1
    print(
        f"{sum(counts.values())} files, slowest {slowest:.2f} s, largest {largest / 2**20:.0f} MiB: {dict(counts)}"
    )
    assert not failures, "\n".join(failures[:20])
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--child", type=Path)
    given = parser.parse_args()
    if given.child:
        child(given.first, given.count, given.child)
    else:
        main(given.count, given.first)
