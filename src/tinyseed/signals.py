"""Signals that ask to stop: Ctrl-C, a scheduler's SIGTERM, the SIGHUP of a closed terminal.

A request is patient where work looks at it and saves before it ends, and impatient where there is nothing to save: then
`Stopped` is raised wherever the main thread is, so that files are removed and processes ended on the way out.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

AT_ONCE = "stopped at once; nothing was saved since the last checkpoint"
"""What to say where work was interrupted."""

_SAME_REQUEST_SECONDS = 1.0
"""Launchers pass a signal on to processes that a terminal or scheduler has sent it to as well."""


class Stopped(BaseException):
    """Stopped by a signal; the message is empty where another process has one for all.

    A BaseException, like KeyboardInterrupt, so that no `except Exception` mistakes it for a failure.
    """

    def __init__(self, number: int, message: str) -> None:
        self.exit_code = 128 + number
        super().__init__(message)


class StopRequest:
    """Which signal has asked to stop, 0 while none has.

    Attributes:
        patient: whether the work looks at the request; otherwise it is interrupted.
    """

    def __init__(self, *, patient: bool = True) -> None:
        self.number = 0
        self.patient = patient
        self._since = 0.0

    @property
    def asked(self) -> bool:
        """Whether one has."""
        return self.number != 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. A second Ctrl-C does not wait."""
        del frame
        now, repeated = time.monotonic(), self.asked
        if repeated and now - self._since < _SAME_REQUEST_SECONDS:
            return
        self.number, self._since = self.number or number, now
        if repeated and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._interrupt()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Be impatient for a while.

        Raises:
            Stopped: a signal asks to stop, or has done so before.
        """
        before, self.patient = self.patient, False
        try:
            self._interrupt()
            yield
        finally:
            self.patient = before

    def _interrupt(self) -> None:
        if self.asked and not self.patient:
            raise Stopped(self.number, AT_ONCE)


@contextmanager
def stop_request(*, patient: bool = True) -> Iterator[StopRequest]:
    """Note the signals that ask to stop; at the end the former handlers are restored."""
    request = StopRequest(patient=patient)
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    former = {number: signal.signal(number, request) for number in STOPPING if not _to_be_ignored(number)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _to_be_ignored(number: int) -> bool:
    """Whether whoever started this process wants it to outlive this signal, as nohup does.

    Not so for Ctrl-C: shells start each background job with it ignored.
    """
    return number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def signals_held() -> Iterator[None]:
    """Keep the signals that ask to stop waiting, in this thread and in processes that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
