"""Cores and threads: how many of them a process may use, and how threads wait for each other.

What libgomp, torch's OpenMP library on Linux, reads from the environment has to be there before torch is loaded. So
importing tinyseed sets it, unless torch is there already or the user has set it; other programs' defaults never change.
"""

import math
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

SPIN_COUNT = 3000
"""Turns that a thread looks for the others before it sleeps: some microseconds; libgomp's default is 300,000.

Beside other busy processes the threads that are awaited are often not running: looking for them then takes the very
core that they need, and every layer of a network takes a time slice. See bench/busy.py.
"""

_OURS: set[str] = set()
"""Names of the variables in the environment that are ours and not the user's."""


def prepare_threads(root: Path = Path("/")) -> None:
    """Set what OpenMP reads from the environment when torch is loaded; what the user has set stays.

    - `GOMP_SPINCOUNT`, unless that or `OMP_WAIT_POLICY` is set: threads wait asleep sooner.
    - `OMP_NUM_THREADS`, where a container's quota amounts to fewer cores than there are: torch does not look at quotas.
    """
    if "torch" in sys.modules:
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    cores = usable_cores(root)
    if cores < _allowed_cores() and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(cores)
        _OURS.add("OMP_NUM_THREADS")


def number_is_ours() -> bool:
    """Whether the user leaves the number of threads to us; if so, it is no longer in the environment for others."""
    if "OMP_NUM_THREADS" in _OURS:
        os.environ.pop("OMP_NUM_THREADS", None)
    return "OMP_NUM_THREADS" not in os.environ


def usable_cores(root: Path = Path("/")) -> int:
    """Processor cores that this process may use: those it is bound to, or a container's quota if that is less.

    Args:
        root: where /proc and /sys are.
    """
    return max(1, min(_allowed_cores(), _quota_of_groups(root)))


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=8)
def _quota_of_groups(root: Path) -> int:
    """The lowest quota, in whole cores; a part of a core counts as one."""
    return min((math.ceil(quota) for quota in _quotas(root) if quota > 0), default=sys.maxsize)


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the control groups that this process is in; there may be none."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    mounted = root / "sys/fs/cgroup"
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            folders = [mounted, mounted / "unified"]
        elif "cpu" in controllers.split(","):
            folders = [mounted / controllers, mounted / "cpu"]
        else:
            continue
        # in a container the path may be the host's, of which only the last group is mounted, as the root
        places = [PurePosixPath(path), *PurePosixPath(path).parents]
        for folder in folders:
            yield from (_quota(folder / str(place).lstrip("/")) for place in places)


def _quota(group: Path) -> float:
    """The quota of a control group in cores; 0 for none."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return max(0.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file; `max`, which is no number
        return 0.0
