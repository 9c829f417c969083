"""bookstore.v1.Orders: check, record, see through, answer."""

import asyncio
from typing import Final

import grpc

from apps.bookstore import fields
from apps.bookstore.database import Database
from apps.bookstore.edge import Context
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order
from apps.bookstore.orders.purchase import CalleeFailed, Patience, Way
from apps.bookstore.orders.settler import backoff_ms, now_ms
from apps.bookstore.orders.ways.desk import Desk
from apps.bookstore.refusals import Reason, Refusal
from proto.bookstore.v1 import orders_pb2, orders_pb2_grpc

PURCHASE_TIMEOUT_S: Final = 4.0
"""Whatever the buyer's deadline: then the order is left to the settler."""
REPEATS: Final = 3
"""Of one call, while the buyer waits."""
MARGIN_S: Final = 0.5
"""The settler leaves an order alone until so long after its buyer's deadline."""


class OrdersService(orders_pb2_grpc.OrdersServicer):
    """One instance of orders."""

    def __init__(self, database: Database, purchases: Way, desk: Desk | None = None) -> None:
        """`desk`: closes orders whose purchase was left to events."""
        self._database = database
        self._purchases = purchases
        self._desk = desk

    async def Purchase(self, request: orders_pb2.PurchaseRequest, context: Context) -> orders_pb2.Order:
        fields.require(
            fields.order_id(request.order_id),
            fields.text("reader", request.reader),
            fields.text("book", request.book),
            fields.between("copies", request.copies, 1, fields.MAX_COPIES),
        )
        remaining_s = context.time_remaining()
        limit_s = PURCHASE_TIMEOUT_S if remaining_s is None else min(PURCHASE_TIMEOUT_S, remaining_s)
        patience = Patience(asyncio.get_running_loop().time() + limit_s, REPEATS)
        wanted = Order(request.order_id, request.reader, request.book, request.copies)
        now = now_ms()
        order = await self._database.run(orderbook.record, wanted, now, now + int((limit_s + MARGIN_S) * 1000))
        try:
            order = await self._purchases.see_through(order, patience)
        except CalleeFailed as error:
            await self._database.run(orderbook.put_off, order.order_id, now_ms() + backoff_ms(order.tries))
            is_limited = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            raise Refusal(Reason.CALLEE_LIMITED if is_limited else Reason.CALLEE_AWAY, str(error)) from None
        if order.refusal is not None:
            raise Refusal(order.refusal, order.explanation)
        return _message(order, patience.repeated_calls)

    async def Settle(self, request: orders_pb2.SettleRequest, context: Context) -> orders_pb2.Order:
        fields.require(fields.order_id(request.order_id))
        order = None if self._desk is None else await self._desk.settle(request.order_id)
        if order is None:
            raise Refusal(Reason.NO_SUCH_ORDER, f'no order "{request.order_id}" waits to be settled')
        return _message(order, 0)

    async def GetOrder(self, request: orders_pb2.GetOrderRequest, context: Context) -> orders_pb2.Order:
        fields.require(fields.order_id(request.order_id))
        order = await self._database.look(orderbook.find, request.order_id)
        if order is None:
            raise Refusal(Reason.NO_SUCH_ORDER, f'no order "{request.order_id}"')
        return _message(order, 0)


def _message(order: Order, repeated_calls: int) -> orders_pb2.Order:
    return orders_pb2.Order(
        order_id=order.order_id,
        reader=order.reader,
        book=order.book,
        copies=order.copies,
        state=orders_pb2.Order.State.Value(order.state),
        amount_cents=order.amount_cents,
        warehouse_version=order.warehouse_version,
        warehouse_instance=order.warehouse_instance,
        repeated_calls=repeated_calls,
        refusal=order.explanation,
    )
