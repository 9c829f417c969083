"""A limiter for each key, within a bound on memory that no stranger can use against the others."""

from collections.abc import Callable
from typing import Final

from sidecar.policy.limiting.limiter import Limiter

TRIES: Final = 8
"""Of the keys that were longest not seen, so many are looked at when room is needed."""


class Keyed:
    """At most `max_keys` limiters.

    A key is only forgotten when its limiter is as good as new, so forgetting gives nothing away. While all are in use, keys that have
    none share one limiter, and `overflows` counts their calls: a flood of new keys cannot wash out the counts of old ones.
    """

    def __init__(self, make: Callable[[float], Limiter], max_keys: int) -> None:
        self._make = make
        self._max_keys = max_keys
        self._limiters: dict[bytes, Limiter] = {}
        """In order of last use, the longest ago first."""
        self._others: Limiter | None = None
        self.overflows = 0

    def __len__(self) -> int:
        return len(self._limiters)

    def of(self, key: bytes, now: float) -> Limiter:
        """The limiter that counts for a key."""
        limiters = self._limiters
        found = limiters.pop(key, None)
        if found is None:
            if len(limiters) >= self._max_keys and not self._make_room(now):
                self.overflows += 1
                if self._others is None:
                    self._others = self._make(now)
                return self._others
            found = self._make(now)
        limiters[key] = found
        return found

    def peek(self, key: bytes, now: float) -> Limiter:
        """The limiter that would count for a key; nothing is kept of having asked."""
        found = self._limiters.get(key)
        if found is None and len(self._limiters) >= self._max_keys:
            found = self._others
        return self._make(now) if found is None else found

    def _make_room(self, now: float) -> bool:
        limiters = self._limiters
        for _ in range(min(TRIES, len(limiters))):
            key = next(iter(limiters))
            oldest = limiters.pop(key)
            if oldest.is_as_new(now):
                return True
            limiters[key] = oldest
        return False
