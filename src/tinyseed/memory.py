"""How much memory there is, so that what cannot fit is refused before it is taken."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from tinyseed.errors import InputError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container; "max", or a number beyond any machine's, where there is none."""


@cache
def total_memory() -> int:
    """Bytes of memory of this machine, or those that its container may take."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(Path(path).read_text(encoding="ascii")))
    return min(found)


def require_memory(size: int, value: object, argument: str) -> None:
    """Refuse a setting that takes more memory than there is.

    Args:
        size: bytes that it takes at least.
        value: of the setting.
        argument: its name.

    Raises:
        InputError: it does not fit.
    """
    if size > total_memory():
        have, need = total_memory() / 2**30, size / 2**30
        why = f"takes at least {need:,.0f} GiB of memory, and there are {have:,.0f}; give a smaller number"
        raise InputError(value, why, argument=argument)
