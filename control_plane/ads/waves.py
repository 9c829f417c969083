"""Who is brought to a new state when: some at a time, the next when they have it.

All at once would be slower for everybody: a thousand responses would wait in the same queues, with a thousand answers behind them, and the
API with them. Nobody waits for a node that is slow: it is given `PATIENCE_S` once, and none while it still owes an answer.
"""

import asyncio
from collections.abc import Collection
from itertools import islice
from typing import Final, TypeVar

WAVE: Final = 32
"""Streams at a time."""
PATIENCE_S: Final = 0.3
"""For so long the next wave waits for the answers to the last."""
REST: Final = 0.5
"""Of the time that a wave took, what is left to all else before the next."""
ROUND_S: Final = 0.01
"""From one state that is told to the next, at least: a change that comes alone is told at once, many that come together are told as few."""

T = TypeVar("T")


class Wave:
    """The streams whose answers are waited for."""

    def __init__(self) -> None:
        self._awaited: set[int] = set()
        self._is_over = asyncio.Event()

    def settled(self, number: int) -> None:
        """A stream has answered, or has gone."""
        self._awaited.discard(number)
        if not self._awaited:
            self._is_over.set()

    async def over(self, numbers: Collection[int]) -> None:
        """Return when these have settled, or at the end of the patience; and some rest."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._awaited = set(numbers)
        self._is_over.clear()
        if self._awaited:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._is_over.wait()
            except TimeoutError:
                pass
        await asyncio.sleep(REST * (loop.time() - began))


def batched(items: Collection[T], size: int) -> "list[list[T]]":
    """In order, `size` at a time."""
    rest = iter(items)
    return [batch for _ in range(0, len(items), size) if (batch := list(islice(rest, size)))]
