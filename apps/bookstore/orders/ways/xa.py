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
        xa = desk.coordinator.xa(order.order_id, timeout_s=UNDECIDED_S)
        xa.plan("debit", desk.accounts("Debit"), desk.debit(order))
        xa.plan("take", desk.warehouse("Pick"), desk.pick(order))
        xa.plan("credit", desk.payment("Credit"), desk.credit(order))
        async with xa:
            await xa.attempt("debit")
            picked = await xa.attempt("take", reply=warehouse_pb2.PickResponse)
            await xa.attempt("credit")
        return picked
