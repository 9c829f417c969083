"""Naive: one call after the other, repeated when it fails, taken back when that does not help. What everybody writes first.

It is wrong in every way in which it can be: a process that dies leaves half a purchase behind; a call whose answer was lost is repeated, and
debits twice; what is to take back may fail like anything else. It is here to be seen failing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from apps.bookstore import calling, catalogue
from apps.bookstore.edge import refusal_of
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order
from apps.bookstore.orders.purchase import REPEATED, Patience
from apps.bookstore.orders.ways.desk import Desk
from apps.bookstore.refusals import Reason, Refusal
from proto.bookstore.v1 import accounts_pb2_grpc, payment_pb2_grpc, warehouse_pb2_grpc

log = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 1.0
REPEATS: Final = 2
PAUSE_S: Final = 0.1


class Naive:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._accounts: Any = accounts_pb2_grpc.AccountsStub(calling.channel(desk.accounts.target))
        self._warehouse: Any = warehouse_pb2_grpc.WarehouseStub(calling.channel(desk.warehouse.target))
        self._payment: Any = payment_pb2_grpc.PaymentStub(calling.channel(desk.payment.target))

    async def see_through(self, order: Order, patience: Patience) -> Order:
        desk = self._desk
        if order.state not in orderbook.OPEN:
            return order
        if catalogue.find(order.book) is None:
            return await desk.reject(order, Reason.NO_SUCH_BOOK, f'no book "{order.book}" in the catalogue')
        undo: list[Callable[[], Awaitable[object]]] = []
        try:
            await _call(self._accounts.Debit, desk.debit(order))
            undo.append(lambda: _call(self._accounts.Refund, desk.debit(order)))
            picked = await _call(self._warehouse.Pick, desk.pick(order))
            undo.append(lambda: _call(self._warehouse.PutBack, desk.pick(order)))
            await _call(self._payment.Credit, desk.credit(order))
        except grpc.aio.AioRpcError as error:
            for each in reversed(undo):
                try:
                    await each()
                except grpc.aio.AioRpcError as lost:
                    log.warning("order %s: could not be taken back: %s", order.order_id, lost.details())
            refusal = refusal_of(error) or Refusal(Reason.TAKEN_BACK, error.details() or "")
            return await desk.reject(order, refusal.reason, refusal.text)
        return await desk.buy(order, picked)


async def _call(method: Any, request: Any) -> Any:
    """Call, and again if it failed: did it?"""
    for repeats in range(REPEATS + 1):
        try:
            return await method(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if repeats == REPEATS or error.code() not in REPEATED:
                raise
        await asyncio.sleep(PAUSE_S)
    raise AssertionError
