"""Ctrl-C and SIGTERM ask a run to save and stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The run was asked to stop and has saved.

    A BaseException, like KeyboardInterrupt, so that no `except Exception` mistakes it for a failure.
    """

    def __init__(self, number: int, message: str) -> None:
        self.exit_code = 128 + number
        super().__init__(message)


class StopRequest:
    """Which signal has asked the run to stop, 0 while none has."""

    number: int = 0

    @property
    def asked(self) -> bool:
        """Whether one has."""
        return self.number != 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. A second Ctrl-C does not wait."""
        del frame
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of ending the process; the former handlers are restored at the end."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
