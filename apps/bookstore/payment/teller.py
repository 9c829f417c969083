"""Has the bank pay out what merchants have earned; whatever the bank says, each payout happens once.

The bank is slow, and its answers are not to be trusted: it may say that it failed when it did not. What it keeps under the key of a
payout is true. So a payout is asked for as often as it takes, always under the same key, and is done when the statement has it.

The naive teller believes the answer and gives no key. So it pays twice what the bank only said had failed.
"""

import asyncio
import logging
from typing import Final

import grpc

from apps.bookstore.database import Database, DatabaseAway
from apps.bookstore.payment import earnings
from apps.bookstore.payment.earnings import Payout
from proto.bookstore.v1 import payment_pb2, payment_pb2_grpc

log = logging.getLogger(__name__)

ROUND_INTERVAL_S: Final = 0.1
MOST_IN_ROUND: Final = 32
"""Side by side: a slow bank is slow for each, and not for all in a row."""
CALL_TIMEOUT_S: Final = 2.0


class Teller:
    """One per process."""

    def __init__(self, database: Database, bank: grpc.aio.Channel, *, is_naive: bool = False) -> None:
        self._database = database
        self._bank: payment_pb2_grpc.BankAsyncStub = payment_pb2_grpc.BankStub(bank)
        self._is_naive = is_naive

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            try:
                await self.pay_due()
            except DatabaseAway as error:
                log.warning("the teller waits for the database: %s", error)
            await asyncio.sleep(ROUND_INTERVAL_S)

    async def pay_due(self) -> None:
        """One round. Raises DatabaseAway."""
        due = await self._database.look(earnings.due, MOST_IN_ROUND)
        paid = await asyncio.gather(*(self._pay(each) for each in due))
        for payout, is_paid in zip(due, paid, strict=True):
            if is_paid:
                await self._database.run(earnings.paid, payout.number)

    async def _pay(self, payout: Payout) -> bool:
        """Whether the bank has paid it."""
        key = "" if self._is_naive else payout.order_id
        wanted = payment_pb2.TransferRequest(key=key, merchant=payout.merchant, amount_cents=payout.amount_cents)
        try:
            await self._bank.Transfer(wanted, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            if self._is_naive:
                return False
        if self._is_naive:
            return True
        return await self._is_on_statement(payout)

    async def _is_on_statement(self, payout: Payout) -> bool:
        asked = payment_pb2.GetTransferRequest(key=payout.order_id)
        try:
            found = await self._bank.GetTransfer(asked, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False  # not there, or nobody knows: the next round asks again
        if (found.merchant, found.amount_cents) != (payout.merchant, payout.amount_cents):
            log.error("order %s: the bank paid %d to %s", payout.order_id, found.amount_cents, found.merchant)
            return False
        return True
