"""Embeddings of photos for bench/loss.py: a queue and queries of other images, from the bundled teacher.

    python bench/features.py --rows TRAIN.parquet … --queries TEST.parquet … --out features.pt

Each photo of --rows gives 8 random crops of 64 px, of which 65,536 drawn at random are the queue; each photo of
--queries gives one, of which 2,048 are kept. Dimensions: 128, the teacher's embedding; 512, its backbone's output;
2,048, its last feature map of 2 × 2, flat; 768, a random projection of that. Not centered. Two minutes on two cores.
"""

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

import tinyseed


def crops(files: list[Path], views: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    for file in files:
        for image in pq.read_table(file).column("image").to_pylist():
            photo = Image.open(io.BytesIO(image["bytes"] if isinstance(image, dict) else image)).convert(
                "RGB"
            )
            for _ in range(views):
                yield crop(photo, generator)


def crop(photo: Image.Image, generator: np.random.Generator) -> np.ndarray:
    """A fifth to all of the area, sides 3:4 to 4:3, mirrored half of the time."""
    width, height = photo.size
    area = generator.uniform(0.2, 1) * width * height
    ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(width, int((area * ratio) ** 0.5)), min(height, int((area / ratio) ** 0.5))
    x, y = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
    view = np.asarray(photo.resize((64, 64), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h)))
    return view[:, ::-1] if generator.random() < 0.5 else view


@torch.no_grad()
def embed(teacher: tinyseed.Teacher, files: list[Path], views: int, most: int) -> dict[int, torch.Tensor]:
    """Half precision, by dimension."""
    backbone: Any = teacher._encoder.backbone
    projector: Any = teacher._encoder.projector
    generator = np.random.default_rng(0)
    pixels = list(crops(files, views, generator))
    order = generator.permutation(len(pixels))[:most]
    mean, std = (
        torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (teacher.input.mean, teacher.input.std)
    )
    projection = torch.randn(2048, 768, generator=torch.Generator().manual_seed(0)) / 768**0.5
    found = {dim: [] for dim in (128, 512, 768, 2048)}
    for part in np.array_split(order, -(-len(order) // 256)):
        images = torch.from_numpy(np.stack([pixels[at] for at in part])).permute(0, 3, 1, 2) / 255
        maps = backbone.network.forward_features((images - mean) / std)
        pooled = maps.mean((2, 3))
        outputs = (projector(pooled), pooled, maps.flatten(1) @ projection, maps.flatten(1))
        for kept, output in zip(found.values(), outputs, strict=True):
            kept.append(output.half())
    return {dim: torch.cat(parts) for dim, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, nargs="+", required=True)
    parser.add_argument("--queries", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    teacher = tinyseed.load_teacher("tinyseed/clothing-resnet18")
    rows = embed(teacher, arguments.rows, 8, 65_536)
    queries = embed(teacher, arguments.queries, 1, 2048)
    torch.save({dim: {"rows": rows[dim], "queries": queries[dim]} for dim in rows}, arguments.out)


if __name__ == "__main__":
    main()
