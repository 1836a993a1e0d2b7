"""Stop a run between two steps on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Whether somebody asked a run to stop."""

    requested = False


@contextmanager
def stop_politely() -> Iterator[Stop]:
    """Inside, Ctrl-C and SIGTERM only set `requested`: a step is never cut in half. Twice means now."""
    stop = Stop()

    def ask(signum: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
