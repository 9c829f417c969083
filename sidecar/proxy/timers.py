"""One timer for all calls: deadlines in slots of 10 ms, instead of a timer object per call."""

import asyncio
from time import monotonic
from typing import Final

from mypy_extensions import mypyc_attr

SLOT_S: Final = 0.01


@mypyc_attr(allow_interpreted_subclasses=True)
class Timed:
    """What waits for a deadline."""

    deadline: float
    """Seconds on the monotonic clock; 0 once nobody waits any more."""

    def on_deadline(self) -> None:
        """The deadline is over."""
        ...


class TimerWheel:
    """Calls `on_deadline` at most one slot late. Forgetting costs nothing: set the deadline to 0."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Timed]] = {}
        self._next: asyncio.TimerHandle | None = None
        self._next_slot = 0

    def add(self, timed: Timed) -> None:
        """Wait for `timed.deadline`."""
        slot = int(timed.deadline / SLOT_S) + 1
        waiting = self._slots.get(slot)
        if waiting is not None:
            waiting.append(timed)
            return
        self._slots[slot] = [timed]
        if self._next is None or slot < self._next_slot:
            if self._next is not None:
                self._next.cancel()
            self._schedule(slot)

    def _schedule(self, slot: int) -> None:
        self._next_slot = slot
        self._next = self._loop.call_later(max(0.0, slot * SLOT_S - monotonic()), self._fire)

    def _fire(self) -> None:
        self._next = None
        now = monotonic()
        current = int(now / SLOT_S)
        for slot in sorted(slot for slot in self._slots if slot <= current):
            for timed in self._slots.pop(slot):
                if 0.0 < timed.deadline <= now:
                    timed.on_deadline()
        if self._slots and self._next is None:
            self._schedule(min(self._slots))
