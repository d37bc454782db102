"""The order of an epoch of millions of images: by sorting random keys, and by the keyed bijection; time and memory.

    python bench/permutation.py [--images 10000000] [--batch 256] [--repeats 3]

Both give every batch of an epoch, as the loader asks for them. Time: medians of turns that alternate. Memory: the peak
of what NumPy holds, by tracemalloc, in a turn of its own. Writes bench/results/permutation.json.
"""

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from common import machine, write_results
from tinyseed.data.addressed import bijection, order, permutation


def by_sorting(images: int, batch: int) -> None:
    whole = permutation(0, 0, images)
    for start in range(0, images, batch):
        whole[start : start + batch].sum()


def by_bijection(images: int, batch: int) -> None:
    places = order(0, 0, images)
    for start in range(0, images, batch):
        places(start, start + batch).sum()


def in_one_call(images: int, batch: int) -> None:
    del batch
    bijection(0, 0, images, np.arange(images))


SIDES: dict[str, Callable[[int, int], None]] = {
    "sort": by_sorting,
    "bijection": by_bijection,
    "bijection, one call": in_one_call,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    taken = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side, work in SIDES.items():
            began = time.perf_counter()
            work(arguments.images, arguments.batch)
            taken[side].append(time.perf_counter() - began)
    rows = {}
    for side, work in SIDES.items():
        tracemalloc.start()
        work(arguments.images, arguments.batch)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        rows[side] = {"seconds": round(statistics.median(taken[side]), 3), "peak_mib": round(peak, 2)}
        print(f"{side:>20}: {rows[side]['seconds']:.2f} s, {rows[side]['peak_mib']:,.2f} MiB", flush=True)
    write_results("permutation", {**vars(arguments), "sides": rows, "machine": machine()})


if __name__ == "__main__":
    main()
