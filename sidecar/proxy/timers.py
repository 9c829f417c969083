"""One timer for all calls: deadlines in slots of 10 ms, instead of a timer object per call."""

import asyncio
from time import monotonic
from typing import Final

from mypy_extensions import mypyc_attr

SLOT_S: Final = 0.01
MAX_FORGOTTEN: Final = 1024
"""Of those that wait no more, so many are held before the wheel is swept (or as many as still wait, if that is more)."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Timed:
    """What waits for a deadline."""

    deadline: float
    """Seconds on the monotonic clock; 0 once nobody waits any more."""

    def on_deadline(self) -> None:
        """The deadline is over."""
        ...


class TimerWheel:
    """Calls `on_deadline` at most one slot late. Forgetting costs nothing: set the deadline to 0.

    Who is forgotten is let go when the wheel is swept, not when its deadline would have come: a call that took a millisecond of
    its hour must not be held for the rest of it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Timed]] = {}
        self._next: asyncio.TimerHandle | None = None
        self._next_slot = 0
        self._held = 0
        """All in the slots."""
        self._sweep_at = MAX_FORGOTTEN

    def add(self, timed: Timed) -> None:
        """Wait for `timed.deadline`."""
        if self._held >= self._sweep_at:
            self._sweep()
        self._held += 1
        slot = int(timed.deadline / SLOT_S) + 1
        waiting = self._slots.get(slot)
        if waiting is not None:
            waiting.append(timed)
            return
        self._slots[slot] = [timed]
        self._wake_for(slot)

    def _sweep(self) -> None:
        """Let go of those that wait no more, or in another slot."""
        held = 0
        for slot, waiting in list(self._slots.items()):
            kept = [timed for timed in waiting if timed.deadline and int(timed.deadline / SLOT_S) + 1 == slot]
            if kept:
                self._slots[slot] = kept
                held += len(kept)
            else:
                del self._slots[slot]
        self._held = held
        self._sweep_at = max(2 * held, MAX_FORGOTTEN)

    def _wake_for(self, slot: int) -> None:
        """See to it that the wheel turns when this slot is over, or before."""
        if self._next is not None:
            if slot >= self._next_slot:
                return
            self._next.cancel()
        self._next_slot = slot
        self._next = self._loop.call_later(max(0.0, slot * SLOT_S - monotonic()), self._fire)

    def _fire(self) -> None:
        self._next = None
        now = monotonic()
        current = int(now / SLOT_S)
        for slot in sorted(slot for slot in self._slots if slot <= current):
            waiting = self._slots.pop(slot, None)
            if waiting is None:
                continue  # swept: one that was called added another
            self._held -= len(waiting)
            for timed in waiting:
                if 0.0 < timed.deadline <= now:
                    timed.on_deadline()
        if self._slots:
            self._wake_for(min(self._slots))  # whoever was called may have added one that is further away
