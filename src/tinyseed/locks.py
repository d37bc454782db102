"""A folder that is written over time belongs to one process.

The lock is a POSIX record lock on a small file in the folder, which names its holder. The operating system drops it
when the process ends, however that happens; children do not inherit it; NFS, Lustre and GPFS pass it on to their
server. On a file system that knows no locks, the file's content decides: a holder on the same machine that is alive
counts, one on another machine cannot be seen.
"""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tinyseed.errors import InputError, RunError, first_line

LOCK = ".lock"
"""Name of the lock file of a run folder."""

_BUSY = (BlockingIOError, PermissionError)  # EAGAIN or EACCES, as POSIX leaves open
_mine: dict[Path, int] = {}
"""Locks of this process by their files, which the operating system would give it again; and who took them: a forked
child must not remove them."""


class InUseError(InputError):
    """Another process holds the folder.

    Attributes:
        holder: it, for people.
    """

    def __init__(self, folder: Path, holder: str) -> None:
        super().__init__(
            folder, f"is being written to by {holder}; wait for it to end, or give another folder"
        )
        self.holder = holder


class Lock:
    """A lock that this process holds.

    Attributes:
        path: the lock file.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    def require(self) -> None:
        """Look whether the folder is still the one that was locked.

        Raises:
            RunError: it was removed, or replaced by another one.
        """
        if not _is_at(self._handle, self.path):
            raise RunError(
                f"{self.path.parent} was removed or replaced while it was being written to; nothing more is written"
            )


@contextmanager
def locked(folder: Path, name: str = LOCK) -> Iterator[Lock]:
    """Hold a folder; it is made where it is missing, and removed again at the end if nothing was written to it.

    Args:
        folder: what is held.
        name: of the lock file; a folder may have several.

    Raises:
        InUseError: another process holds it.
        InputError: it cannot be written to.
        RunError: the lock cannot be written.
    """
    path, made = folder / name, [above for above in (folder, *folder.parents) if not above.exists()]
    try:
        handle = _acquire(path)
    except (InputError, RunError):
        _remove_empty(made)
        raise
    key = path.resolve()
    _mine[key] = os.getpid()
    try:
        yield Lock(path, handle)
    finally:
        if _mine.get(key) == os.getpid():  # not in a forked worker
            del _mine[key]
            if _is_at(handle, path):
                with suppress(OSError):
                    path.unlink()  # before it is dropped: whoever opened it sees that it is not in its place any more
            os.close(handle)
            _remove_empty(made)


def refuse_held(folder: Path, name: str = LOCK) -> None:
    """Look whether another process holds a folder; changes nothing.

    Raises:
        InUseError: it does.
    """
    path = folder / name
    _refuse_mine(path)
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return
    try:
        _take(handle, path)
    finally:
        os.close(handle)


def _acquire(path: Path) -> int:
    """The open lock file, locked, with this process as its content."""
    _refuse_mine(path)
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _cannot_write(path.parent, error) from error
        try:
            _take(handle, path)
            if _is_at(handle, path):
                content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
                os.ftruncate(handle, 0)
                os.pwrite(handle, content.encode(), 0)
                return handle
        except OSError as error:
            with suppress(OSError):
                path.unlink()  # it is locked, but names nobody
            os.close(handle)
            raise _cannot_write(path.parent, error) from error
        except InputError:
            os.close(handle)
            raise
        os.close(handle)  # its former holder has just removed it


def _refuse_mine(path: Path) -> None:
    """Refuse what this process holds, before the file is opened: closing it again would drop the lock."""
    if _mine.get(path.resolve()) == os.getpid():
        raise _in_use(path, {"pid": os.getpid()})


def _take(handle: int, path: Path) -> None:
    """Lock an open file, or refuse."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _BUSY:
        raise _in_use(path, _holder(handle)) from None
    except OSError:  # a file system without locks
        holder = _holder(handle)
        if holder.get("host") == socket.gethostname() and _alive(holder.get("pid")):
            raise _in_use(path, holder) from None


def _holder(handle: int) -> dict[str, object]:
    try:
        content = json.loads(os.pread(handle, 4096, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _alive(process: object) -> bool:
    if not isinstance(process, int) or process <= 0 or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _in_use(path: Path, holder: dict[str, object]) -> InUseError:
    process, host = holder.get("pid"), holder.get("host")
    who = "another process" if process is None else f"process {process}"
    where = "" if host in (None, socket.gethostname()) else f" on {host}"
    return InUseError(path.parent, f"{who}{where}")


def _cannot_write(folder: Path, error: OSError) -> InputError | RunError:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(folder, f"cannot be written to ({error.strerror}); give another folder")
    return RunError(f"could not write to {folder}: {first_line(error)}")


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


USED = ".used"
"""Name of the lock file of a folder that several processes may use at once; its time of change is that of the last
use."""


class Use:
    """A folder that this process uses, together with others: as long as one does, nobody removes it."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def close(self) -> None:
        """End the use."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def in_use(folder: Path) -> Use | None:
    """Use a folder together with other processes; None where it cannot be marked.

    By `flock`, which also tells users of one process apart; child processes share their parent's.
    """
    try:
        handle = os.open(folder / USED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_SH)  # who removes a folder, or looks, is soon done
        os.utime(handle)
    return Use(handle)


def is_used(folder: Path) -> bool:
    """Whether a process uses a folder now."""
    try:
        handle = os.open(folder / USED, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _BUSY:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Wait until nobody else is here, for something short; where a file system knows no locks, go on.

    Raises:
        OSError: the lock file cannot be made.
    """
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
