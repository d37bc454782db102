"""Reading image files: regular ones of a bounded size. A lack of system resources is told apart from a bad image."""

import errno
import os
import stat
import time
from pathlib import Path
from typing import NoReturn

from tinyseed.errors import RunError

LARGEST_FILE = 2**30
"""Bytes of the largest encoded image that is read."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_PAUSES = (0.05, 0.2, 1.0)  # seconds; another thread or process may close a file in the meantime


def read_file(path: bytes | str | Path) -> bytes:
    """The content of an image file. A pipe or device is refused, so that reading never waits.

    Raises:
        OSError: there is no such file, it is not a regular file, is too large or cannot be read.
        RunError: the process or the system has no file descriptor or memory left; no fault of the file.
    """
    return _patiently(path, 0, None)


def read_part(path: bytes | str | Path, begin: int, end: int) -> bytes:
    """The bytes from `begin` to `end` of a file that holds several images.

    No file stays open in between, so that any number of them can be read from.

    Raises:
        OSError: as `read_file`; or the file is shorter.
        RunError: as `read_file`.
    """
    return _patiently(path, begin, end)


def is_exhaustion(error: OSError) -> bool:
    """Whether the system lacks resources, rather than something being wrong with a file."""
    return error.errno in _EXHAUSTED


def raise_exhausted(error: OSError) -> NoReturn:
    """Say what to do when the system lacks resources.

    Raises:
        RunError: always.
    """
    if error.errno == errno.ENOMEM:
        raise RunError("out of memory while reading images: use fewer `workers`") from error
    raise RunError(
        f"{error.strerror} (limit: {_file_limit()}): raise it with ulimit -n 4096, or use fewer `workers`"
    ) from error


def _file_limit() -> str:
    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown"
    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _patiently(path: bytes | str | Path, begin: int, end: int | None) -> bytes:
    for pause in (*_PAUSES, None):
        try:
            return _read(path, begin, end)
        except OSError as error:
            if not is_exhaustion(error):
                raise
            if pause is None:
                raise_exhausted(error)
            time.sleep(pause)
    raise AssertionError  # the last turn returns or raises


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
