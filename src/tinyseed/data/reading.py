"""Reading image files: regular ones of a bounded size, patiently where too many files are open."""

import errno
import os
import stat
import time
from pathlib import Path

from tinyseed.errors import RunError, first_line, remedy_of

LARGEST_FILE = 2**30
"""Bytes of the largest encoded image that is read."""

_PAUSES = (0.05, 0.2, 1.0)  # seconds; another thread or process may close a file in the meantime


def read_file(path: bytes | str | Path) -> bytes:
    """The content of an image file. A pipe or device is refused, so that reading never waits.

    Raises:
        OSError: there is no such file, it is not a regular file, is too large or cannot be read; or it is not the
            file's fault (see `remedy_of`).
    """
    return _patiently(path, 0, None)


def read_part(path: bytes | str | Path, begin: int, end: int) -> bytes:
    """The bytes from `begin` to `end` of a file that holds several images.

    No file stays open in between, so that any number of them can be read from.

    Raises:
        OSError: as `read_file`; or the file is shorter.
    """
    return _patiently(path, begin, end)


def require_resources(error: OSError) -> None:
    """Tell what the machine lacks from what is wrong with a file or folder.

    Raises:
        RunError: the machine lacks memory, open files or a file system.
    """
    remedy = remedy_of(error)
    if remedy is not None:
        raise RunError(f"{first_line(error)}: {remedy}") from error


def _patiently(path: bytes | str | Path, begin: int, end: int | None) -> bytes:
    for pause in _PAUSES:
        try:
            return _read(path, begin, end)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            time.sleep(pause)
    return _read(path, begin, end)


def _read(path: bytes | str | Path, begin: int, end: int | None) -> bytes:
    handle = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # opening a pipe would wait for a writer
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        length = (status.st_size if end is None else end) - begin
        if length > LARGEST_FILE:
            raise OSError(errno.EFBIG, f"larger than {LARGEST_FILE / 2**30:g} GiB")
        if end is None:
            with open(handle, "rb", buffering=0, closefd=False) as file:
                return file.read()
        content = os.pread(handle, length, begin)
        if len(content) < length:
            raise OSError(errno.EIO, "is shorter than expected")
        return content
    finally:
        os.close(handle)
