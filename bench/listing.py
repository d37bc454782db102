"""Times the listing of a folder of a million images: first, from the index, and beside a plain os.walk.

    python bench/listing.py [--count 1000000] [--per-folder 1000]

The kernel holds the folders in its cache for all ways alike, since they were just made. Making and deleting
the files takes longer than all else. Writes bench/results/listing.json.
"""

import argparse
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common import machine, write_results
from tinyseed.data.sources import open_source

LONG_AGO = 1_600_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--per-folder", type=int, default=1_000)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="tinyseed-listing-"))
    try:
        os.environ["TINYSEED_CACHE"] = str(base / "cache")
        create(base / "images", arguments.count, arguments.per_folder)
        seconds, pickled = measure(base / "images", arguments.count)
    finally:
        shutil.rmtree(base)
    table = Table("way", "seconds", title=f"Listing {arguments.count:,} images")
    for way, value in seconds.items():
        table.add_row(way, f"{value:.3f}")
    Console().print(table)
    setting = {"images": arguments.count, "per_folder": arguments.per_folder}
    write_results("listing", {**setting, "seconds": seconds, "bytes_pickled": pickled, "machine": machine()})


def create(root: Path, count: int, per_folder: int) -> None:
    """Empty files in folders of so many each."""
    for first in range(0, count, per_folder):
        folder = root / f"class-{first // per_folder:05}"
        folder.mkdir(parents=True)
        at = os.open(folder, os.O_RDONLY)
        for number in range(first, min(first + per_folder, count)):
            os.mknod(f"photograph-{number:08}.jpg", dir_fd=at)
        os.close(at)
        os.utime(folder, (LONG_AGO, LONG_AGO))  # a folder just written would be listed anew next time
    os.utime(root, (LONG_AGO, LONG_AGO))


def measure(root: Path, count: int) -> tuple[dict[str, float], int]:
    """Seconds of each way (medians of three where it can be repeated), and the bytes sent to a worker."""
    seconds = {
        "os.walk and sorted": median(lambda: walked(root)),
        "first listing": median(lambda: anew(root)),
    }
    seconds["from the index"] = median(lambda: open_source([str(root)]))
    source = open_source([str(root)])
    assert len(source) == count
    assert [source.name(at) for at in range(0, count, 997)] == walked(root)[::997]
    (root / "class-00000" / "new.jpg").write_bytes(b"x")
    seconds["after a change"] = timed(lambda: open_source([str(root)]))
    assert len(open_source([str(root)])) == count + 1
    return seconds, len(pickle.dumps(source))


def anew(root: Path) -> None:
    shutil.rmtree(os.environ["TINYSEED_CACHE"], ignore_errors=True)
    open_source([str(root)])


def walked(root: Path) -> list[str]:
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)


def median(action: Callable[[], object]) -> float:
    return sorted(timed(action) for _ in range(3))[1]


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return round(time.perf_counter() - start, 4)


if __name__ == "__main__":
    main()
