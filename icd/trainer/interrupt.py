"""Stop a run between two steps on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether a signal asked the run to stop."""

    requested = False


@contextmanager
def graceful_stop() -> Iterator[Stop]:
    """Let Ctrl-C and SIGTERM set `requested`: no step is cut in half. A second signal stops at once."""
    stop = Stop()

    def request(signum: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
