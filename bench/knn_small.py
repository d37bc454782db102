"""The nearest images of banks that are too small for the scan: by exhaustive tiles and by faiss' flat index.

    python bench/knn_small.py [--queries 4096] [--repeats 3]

The sides take turns; medians, and the median of the ratios. Features are noise around 100 centers. Both get the same
features and include their normalization and the index. Writes bench/results/knn-small.json.
"""

import argparse
import itertools
import statistics
import time

import torch

from common import machine, write_results
from tinyseed.evaluation.search import _by_faiss, _exhaustive

SIDES = {"exhaustive": _exhaustive, "faiss": _by_faiss}


def features(images: int, width: int, generator: torch.Generator) -> torch.Tensor:
    centers = torch.randn(100, width, generator=torch.Generator().manual_seed(0))
    own = torch.randint(100, (images,), generator=generator)
    return centers[own] + 1.5 * torch.randn(images, width, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = []
    for width, images, count in itertools.product((128, 512, 2048), (500, 2000, 8000, 32_000), (20, 200)):
        generator = torch.Generator().manual_seed(1)
        bank, queries = features(images, width, generator), features(arguments.queries, width, generator)
        taken = {side: [] for side in SIDES}
        for search in SIDES.values():
            search(queries[:64], bank, count, None)
        for _ in range(arguments.repeats):
            for side, search in SIDES.items():
                began = time.perf_counter()
                search(queries, bank, count, None)
                taken[side].append(time.perf_counter() - began)
        row = {"width": width, "images": images, "neighbors": count}
        row |= {side: round(statistics.median(times), 4) for side, times in taken.items()}
        ratios = [a / b for a, b in zip(taken["exhaustive"], taken["faiss"], strict=True)]
        rows.append(row | {"exhaustive_to_faiss": round(statistics.median(ratios), 2)})
        print(rows[-1], flush=True)
    write_results("knn-small", {**vars(arguments), "rows": rows, "machine": machine()})


if __name__ == "__main__":
    main()
