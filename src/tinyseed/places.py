"""Where files are kept between runs. Imports nothing of tinyseed."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """The folder for indexes and fetched files: $TINYSEED_CACHE, else $XDG_CACHE_HOME/tinyseed, else ~/.cache/tinyseed.

    Where that cannot be written, a temporary folder that lasts as long as the process.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    own = Path(base) / "tinyseed" if Path(base).is_absolute() else Path("~/.cache/tinyseed")
    try:
        folder = Path(os.environ.get("TINYSEED_CACHE") or own).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return _temporary_folder(os.getpid())
    return folder if os.access(folder, os.W_OK | os.X_OK) else _temporary_folder(os.getpid())


@cache
def _temporary_folder(process: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tinyseed-"))

    def remove() -> None:
        if os.getpid() == process:  # a forked child must not take the folder from its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
