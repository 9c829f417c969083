"""XA: each service does its part in a transaction of its own PostgreSQL and prepares it; then all are committed, or all rolled back.

The services need no second method for it. What is prepared is seen by nobody, and its rows are locked until the end.
"""

from apps.bookstore.orders.orderbook import Order
from apps.bookstore.orders.purchase import Patience
from apps.bookstore.orders.ways.desk import UNDECIDED_S, Desk
from proto.bookstore.v1 import warehouse_pb2


class Xa:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def see_through(self, order: Order, patience: Patience) -> Order:
        return await self._desk.see_to(order, patience, self._buy)

    async def _buy(self, order: Order) -> warehouse_pb2.PickResponse:
        desk = self._desk
        async with desk.coordinator.xa(order.order_id, timeout_s=UNDECIDED_S) as xa:
            await xa.call("debit", desk.accounts("Debit"), desk.debit(order))
            reply = warehouse_pb2.PickResponse
            picked = await xa.call("take", desk.warehouse("Pick"), desk.pick(order), reply=reply)
            await xa.call("credit", desk.payment("Credit"), desk.credit(order))
        return picked
