"""Sees orders through that nobody else does: their process died, or another service was away.

It never hurries. One order at a time; when a callee is away or takes no more, the whole round ends, because the next order would
fare no better; each order is put off for longer every time.
"""

import asyncio
import logging
from random import random
from time import time_ns
from typing import Final

import grpc

from apps.bookstore.database import Database, DatabaseAway
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order
from apps.bookstore.orders.purchase import CalleeFailed, Patience, Way

log = logging.getLogger(__name__)

ROUND_INTERVAL_S: Final = 0.25
MOST_IN_ROUND: Final = 32
ORDER_TIMEOUT_S: Final = 2.0
"""Of one try of one order."""
ROUND_TIMEOUT_S: Final = 10.0
"""Then the rest of the round is left for the next; claims outlast it."""
CLAIM_MS: Final = int((ROUND_TIMEOUT_S + 2 * ORDER_TIMEOUT_S) * 1000)
FIRST_BACKOFF_MS: Final = 250
LONGEST_BACKOFF_MS: Final = 3000
TRIES_BEFORE_ALARM: Final = 20
_ENDS_ROUND: Final = frozenset(
    [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED]
)


def now_ms() -> int:
    """Milliseconds since 1970: what is due must outlive the process, so it cannot be counted on its own clock."""
    return time_ns() // 1_000_000


def backoff_ms(tries: int) -> int:
    """How long an order is put off after so many tries, spread by half."""
    return int(min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** min(tries, 10)) * (0.5 + random() / 2))


class Settler:
    """One per process; several processes share the work by claiming."""

    def __init__(self, database: Database, purchases: Way) -> None:
        self._database = database
        self._purchases = purchases

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            try:
                await self.settle_due()
            except DatabaseAway as error:
                log.warning("the settler waits for the database: %s", error)
            await asyncio.sleep(ROUND_INTERVAL_S)

    async def settle_due(self) -> None:
        """One round. Raises DatabaseAway."""
        if not await self._database.look(orderbook.is_any_due, now_ms()):
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + ROUND_TIMEOUT_S
        now = now_ms()
        claimed = await self._database.run(orderbook.claim, now, now + CLAIM_MS, MOST_IN_ROUND)
        while claimed and loop.time() < end and await self._try(claimed[0]):
            claimed.pop(0)
        for order in claimed:
            await self._database.run(orderbook.put_off, order.order_id, now_ms() + backoff_ms(order.tries))

    async def _try(self, order: Order) -> bool:
        """See one order through; False if the next would fare no better."""
        loop = asyncio.get_running_loop()
        try:
            await self._purchases.see_through(order, Patience(loop.time() + ORDER_TIMEOUT_S, repeats=0))
        except CalleeFailed as error:
            if order.tries and order.tries % TRIES_BEFORE_ALARM == 0:
                log.warning("tried %d times: %s", order.tries, error)
            if error.code in _ENDS_ROUND:
                return False
            await self._database.run(orderbook.put_off, order.order_id, now_ms() + backoff_ms(order.tries))
        return True
