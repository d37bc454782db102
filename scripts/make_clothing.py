"""Make the photographs that come with the package: short side 80 pixels, at most 11.5 MB in Parquet.

    python scripts/make_clothing.py FOLDER

FOLDER holds train.parquet, test.parquet and LICENSE of the CC0 clothing photos (short side 160). The same
input and the same versions of Pillow and pyarrow give the same files, byte for byte.
"""

import hashlib
import json
import sys
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from tinyseed.data.decode import decode
from tinyseed.data.sources import open_source

TARGET = Path(__file__).resolve().parents[1] / "src" / "tinyseed" / "assets" / "clothing"
SHORT_SIDE = 80
MOST_BYTES = 11_500_000
SPLITS = ("train", "test")

SOURCE = """\
# The clothing photos

{train:,} training and {test:,} test photos of clothes in 17 unbalanced classes; a label is the class folder
of the original.

- Source: <https://github.com/alexeygrigorev/clothing-dataset>,
  commit 7ed86a9cc56763b6acb35e41cb35184e43a5d218, taken over from a copy with a short side of 160 pixels that
  was divided into train and test already.
- Licence: CC0 1.0 (public domain dedication), see LICENSE.
- Done here: each photo turned upright (EXIF), resized to a short side of {side} pixels (Lanczos) and saved as
  JPEG of quality {quality} with 4:2:0 chroma and optimised Huffman tables, without metadata. Order, labels
  and names are kept.
- Format: Parquet in the Hugging Face convention (`image` with `bytes` and `path`, `label` as ClassLabel), row
  groups of 256.
- Command: `python scripts/make_clothing.py FOLDER` with Pillow {pillow} and pyarrow {arrow}.
- Repeats: no original file, no resized image and no file here is in both splits or twice in one (the command
  checks it). By look (16 × 16 gray pixels, correlation above 0.99) these test photos are in train too:
  {alike}.

SHA-256:

    {sums}
"""


class Photo(NamedTuple):
    """One row: the original file, the resized image, its name and label."""

    original: bytes
    image: Image.Image
    path: str
    label: int


def main(folder: Path) -> None:
    """Write both splits, the licence and the note on where they come from."""
    photos = {split: read(folder / f"{split}.parquet") for split in SPLITS}
    classes = open_source([str(folder / "train.parquet")]).classes
    quality = best_quality(photos)
    TARGET.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        write(TARGET / f"{split}.parquet", photos[split], classes, quality)
    check_apart(photos["train"], photos["test"], quality)
    (TARGET / "LICENSE").write_bytes((folder / "LICENSE").read_bytes())
    (TARGET / "SOURCE.md").write_text(note(photos, classes, quality), "utf-8")
    total = sum((TARGET / f"{split}.parquet").stat().st_size for split in SPLITS)
    print(f"quality {quality}: {total:,} bytes in {TARGET}")


def read(path: Path) -> list[Photo]:
    """All photos of a split, resized."""
    rows = pq.read_table(path).to_pylist()
    return [
        Photo(row["image"]["bytes"], shrunk(row["image"]["bytes"]), row["image"]["path"], row["label"])
        for row in rows
    ]


def shrunk(data: bytes) -> Image.Image:
    """Upright RGB with the short side at 80 pixels."""
    image = decode(data)
    scale = SHORT_SIDE / min(image.size)
    width, height = (max(SHORT_SIDE, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def encoded(image: Image.Image, quality: int) -> bytes:
    """JPEG with 4:2:0 chroma: at equal size 1.3 dB better in luma than 4:4:4, and 0.2 dB worse over RGB."""
    file = BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return file.getvalue()


def best_quality(photos: dict[str, list[Photo]]) -> int:
    """The highest JPEG quality at which both files fit."""
    low, high = 1, 96
    while high - low > 1:
        middle = (low + high) // 2
        size = sum(len(table_bytes(rows, (), middle)) for rows in photos.values())
        low, high = (middle, high) if size <= MOST_BYTES else (low, middle)
    return low


def table_bytes(rows: list[Photo], classes: tuple[str, ...], quality: int) -> bytes:
    """The Parquet file's content."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = {
        "image": [{"bytes": encoded(row.image, quality), "path": row.path} for row in rows],
        "label": [row.label for row in rows],
    }
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema),
        sink,
        row_group_size=256,
        use_dictionary=False,
        write_statistics=False,  # which for images would repeat whole images
        compression={"image.bytes": "none", "image.path": "zstd", "label": "zstd"},  # pyright: ignore[reportArgumentType]
    )
    return sink.getvalue().to_pybytes()


def write(path: Path, rows: list[Photo], classes: tuple[str, ...], quality: int) -> None:
    """Write one split."""
    path.write_bytes(table_bytes(rows, classes, quality))


def check_apart(train: list[Photo], test: list[Photo], quality: int) -> None:
    """Stop where a photo stands twice: as an original file, as pixels, or as a file here."""
    for contents in (
        [row.original for row in train + test],
        [row.image.tobytes() for row in train + test],
        [encoded(row.image, quality) for row in train + test],
    ):
        if len(set(contents)) < len(contents):
            sys.exit(f"{len(contents) - len(set(contents))} photos repeat another one byte for byte")


def alike(train: list[Photo], test: list[Photo], classes: tuple[str, ...]) -> str:
    """The test photos that look like a training photo."""
    correlation = looks(test) @ looks(train).T
    pairs = zip(*np.nonzero(correlation > 0.99), strict=True)
    told = [
        f"row {one} ({classes[test[one].label]}) as row {other} ({classes[train[other].label]})"
        for one, other in pairs
    ]
    return ", ".join(told) or "none"


def looks(rows: list[Photo]) -> NDArray[np.float32]:
    """Unit vectors of 256 gray pixels."""
    small = [row.image.convert("L").resize((16, 16), Image.Resampling.BOX) for row in rows]
    pixels = np.stack([np.asarray(image, np.float32).ravel() for image in small])
    pixels -= pixels.mean(1, keepdims=True)
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True).clip(1e-9)


def note(photos: dict[str, list[Photo]], classes: tuple[str, ...], quality: int) -> str:
    """SOURCE.md."""
    files = [TARGET / f"{split}.parquet" for split in SPLITS]
    return SOURCE.format(
        train=len(photos["train"]),
        test=len(photos["test"]),
        side=SHORT_SIDE,
        quality=quality,
        pillow=PIL.__version__,
        arrow=pa.__version__,
        alike=alike(photos["train"], photos["test"], classes),
        sums="\n    ".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
