"""Work in processes beside the main one, whose results come back in order.

Results travel through pipes. Shared memory would save a copy, but containers often have 64 MB of it, and a process that
writes beyond that waits for ever or is killed. Pipes need no space and two open files per process, and their end shows
at once that the other side is gone: a worker that dies ends the run with one line, and workers end with their parent.
"""

import fcntl
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from tinyseed.errors import RunError, remedy_of
from tinyseed.signals import STOPPING, signals_held

Request = TypeVar("Request")
Result = TypeVar("Result")

_NAME = "tinyseed-worker"
_PIPE_BYTES = 1 << 20
_FORK = "fork" if sys.platform == "linux" else None
"""Workers begin as copies of the main process where that is safe: they need not import anything."""


def in_worker() -> bool:
    """Whether this is a worker process."""
    return multiprocessing.current_process().name == _NAME


def in_processes(
    work: Callable[[Request], Result],
    requests: Iterable[Request],
    workers: int,
    received: Callable[[Result], Result] = lambda result: result,
) -> Generator[Result, None, None]:
    """The results of some work, in the order of the requests.

    Args:
        work: called in a worker process, or in this one if there are no workers.
        requests: each worker goes through them itself, and does its share.
        workers: number of processes; 0: the work is done here, when a result is asked for.
        received: called on each result in a thread of this process.

    Raises:
        RunError: a worker died.
        Exception: whatever `work` raised.
    """
    if workers == 0:
        yield from (received(work(request)) for request in requests)
        return
    pool = _Pool(work, requests, workers, received)
    try:
        yield from pool.results()
    finally:
        pool.close()


@dataclass(frozen=True)
class _Message:
    kind: Literal["result", "error", "end"]
    content: Any = None


class _Pool(Generic[Result]):
    """Workers and the thread that reads what they send, ahead of who needs it."""

    def __init__(
        self,
        work: Callable[[Request], Result],
        requests: Iterable[Request],
        workers: int,
        received: Callable[[Result], Result],
    ) -> None:
        self._received = received
        self._readers: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="receive")
        # also at the end of the interpreter, before multiprocessing asks workers to end by a signal that they ignore
        self.close = weakref.finalize(self, _end, self._processes, self._readers, self._thread)
        try:
            for number in range(workers):
                self._start(work, islice(requests, number, None, workers))
        except OSError as error:
            self.close()
            remedy = remedy_of(error) or "give fewer `workers`"
            raise RunError(
                f"{workers} decoding processes cannot be started ({error.strerror}): {remedy}"
            ) from error

    def _start(self, work: Callable[[Request], Result], share: Iterator[Request]) -> None:
        context = multiprocessing.get_context(_FORK)
        reader, writer = cast("tuple[Connection, Connection]", context.Pipe(duplex=False))
        self._readers.append(reader)
        with suppress(OSError, AttributeError):  # fewer switches between the processes; only on Linux
            fcntl.fcntl(writer.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        arguments = (work, share, writer, self._readers)
        process = context.Process(target=_serve, args=arguments, name=_NAME, daemon=True)
        with writer, signals_held():  # none may reach a worker before it ignores them
            process.start()
        self._processes.append(process)

    def results(self) -> Iterator[Result]:
        """In order, until the requests end."""
        turns = cycle(zip(self._readers, self._processes, strict=True))
        ahead: deque[Future[_Message]] = deque(
            self._thread.submit(self._next, *turn) for turn in islice(turns, len(self._readers))
        )
        while True:
            message = ahead.popleft().result()
            if message.kind == "end":
                return
            ahead.append(self._thread.submit(self._next, *next(turns)))
            yield message.content

    def _next(self, reader: Connection, process: BaseProcess) -> _Message:
        try:
            message = cast(_Message, _receive(reader))
        except (EOFError, ConnectionError):
            raise _death(process) from None
        if message.kind == "error":
            raise message.content
        return _Message("result", self._received(message.content)) if message.kind == "result" else message


def _end(processes: list[BaseProcess], readers: list[Connection], thread: ThreadPoolExecutor) -> None:
    for process in processes:
        process.kill()  # they hold nothing that would have to be saved, and ignore milder signals
    for process in processes:
        process.join()
    thread.shutdown(cancel_futures=True)
    for reader in readers:
        reader.close()


def _death(process: BaseProcess) -> RunError:
    process.join(timeout=5)
    code = process.exitcode
    how = (
        f"ended with exit code {code}" if code is None or code >= 0 else f"was ended by {_signal_name(-code)}"
    )
    likely = "memory is probably full: give fewer `workers`, or a smaller `batch_size`"
    crashed = "0 `workers` shows more of it"
    return RunError(f"a decoding process {how}; {likely if code == -signal.SIGKILL else crashed}")


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _serve(
    work: Callable[[Request], object], share: Iterator[Request], writer: Connection, readers: list[Connection]
) -> None:
    """What a worker does: its share, until that ends or nobody reads any more."""
    for number in STOPPING:
        signal.signal(
            number, signal.SIG_IGN
        )  # a group's Ctrl-C or SIGTERM: the main process saves, then ends them
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    for reader in readers:
        reader.close()  # else it would count as one who reads
    torch.set_num_threads(1)
    with suppress(BrokenPipeError):
        try:
            for request in share:
                _send(writer, _Message("result", work(request)))
            _send(writer, _Message("end"))
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001  (it is raised in the main process)
            _send(writer, _Message("error", _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error as it is raised in the main process, with the worker's traceback beside it."""
    error.add_note(f"in a worker process:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  (an error may hold anything, and its class may need more arguments)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Pickler(pickle.Pickler):
    """Tensors travel as arrays: theirs is the form whose bytes need not be copied into the pickle."""

    def reducer_override(self, obj: object) -> Any:  # noqa: ANN401
        if isinstance(obj, torch.Tensor):
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


def _send(writer: Connection, message: _Message) -> None:
    buffers: list[pickle.PickleBuffer] = []
    pickled = BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=buffers.append).dump(message)
    views = [buffer.raw() for buffer in buffers]
    writer.send_bytes(pickle.dumps((pickled.getvalue(), [view.nbytes for view in views])))
    for view in views:
        left = view
        while left:
            left = left[os.write(writer.fileno(), left) :]


def _receive(reader: Connection) -> object:
    pickled, sizes = pickle.loads(reader.recv_bytes())
    buffers: list[NDArray[np.uint8]] = []
    for size in sizes:
        buffers.append(np.empty(size, np.uint8))
        left = buffers[-1].data
        while left:
            count = os.readv(reader.fileno(), [left])
            if count == 0:
                raise EOFError
            left = left[count:]
    return pickle.loads(pickled, buffers=buffers)
