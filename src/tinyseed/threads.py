"""Cores and threads: how many of them a process may use, and how threads wait for each other.

What libgomp, torch's OpenMP library on Linux, reads from the environment has to be there before torch is loaded. So
importing tinyseed sets it, unless torch is there already or the user has set it; other programs' defaults never change.
"""

import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

SPIN_COUNT = 3000
"""Turns that a thread looks for the others before it sleeps: some microseconds; libgomp's default is 300,000.

Beside other busy processes the threads that are awaited are often not running: looking for them then takes the very
core that they need, and every layer of a network takes a time slice. See bench/busy.py.
"""

BUSY_CORES = 0.75
"""Cores that other programs keep busy, on average, from which on they count."""

_SHORTEST_LOOK = 1.0

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


@dataclass(frozen=True)
class Moment:
    """The time that has been computed until now.

    Attributes:
        at: seconds, by the clock that runs on.
        own: seconds that this process has computed, in all of its threads.
        idle: seconds that the cores which it may use have been idle; None where the system does not say.
    """

    at: float
    own: float
    idle: float | None

    @classmethod
    def now(cls, root: Path = Path("/")) -> "Moment":
        """This moment; `root` is where /proc is."""
        return cls(time.monotonic(), time.process_time(), _idle_seconds(root))

    def busy_since(self, before: "Moment") -> float:
        """Cores that other programs kept busy between two moments, on average; 0 where it cannot be told."""
        seconds = self.at - before.at
        if self.idle is None or before.idle is None or seconds < _SHORTEST_LOOK:
            return 0.0
        others = _allowed_cores() - (self.idle - before.idle + self.own - before.own) / seconds
        return max(0.0, others)


def _idle_seconds(root: Path) -> float | None:
    """Idle time of the cores that this process may use, waiting for disks included; Linux only."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        lines = (root / "proc/stat").read_text(encoding="ascii").splitlines()
        fields = {
            parts[0]: parts[4:6] for parts in map(str.split, lines) if parts and parts[0].startswith("cpu")
        }
        ticks = sum(int(tick) for core in os.sched_getaffinity(0) for tick in fields[f"cpu{core}"])
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, KeyError):
        return None


BEGAN = Moment.now()
"""When tinyseed was imported; what other programs did until a run begins is what they will do beside it."""


def threads_beside_others(threads: int, busy: float) -> int:
    """How many threads compute fastest beside other programs.

    All threads wait for the one whose core is taken: two threads on two cores, beside one busy process, are slower
    than one (bench/busy.py).

    Args:
        threads: on a machine that is otherwise idle.
        busy: cores that other programs keep busy.

    >>> [threads_beside_others(2, busy) for busy in (0.3, 1.0, 2.0)], threads_beside_others(16, 3.1)
    ([2, 1, 1], 13)
    """
    return threads if busy < BUSY_CORES else max(1, threads - round(busy))


def number_is_given() -> bool:
    """Whether the user has set the number of threads in the environment."""
    return "OMP_NUM_THREADS" in os.environ and "OMP_NUM_THREADS" not in _OURS


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
