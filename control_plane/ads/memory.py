"""Memory that is free goes back to the system: after many nodes were told much at once, what that took is kept otherwise."""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final

QUIET_S: Final = 1.0
"""After the last that took much."""


def _found() -> Callable[[int], object] | None:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None  # not glibc
    return trim


_TRIM: Final = _found()


class Trimmer:
    """Trims once things are quiet."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def later(self) -> None:
        """Things are going on; not yet."""
        if _TRIM is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        # In a thread: it walks all free memory, and does not hold the interpreter.
        self._timer = loop.call_later(QUIET_S, loop.run_in_executor, None, _TRIM, 0)
