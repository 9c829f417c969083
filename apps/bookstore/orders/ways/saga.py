"""Saga: debit and take side by side, and undo the one if the other is refused; then credit, from which there is no way back.

The coordinator makes all calls. Somebody who looks meanwhile may see a wallet that was debited for a book that is then sold out.
"""

from apps.bookstore.orders.orderbook import Order
from apps.bookstore.orders.purchase import Patience
from apps.bookstore.orders.ways.desk import Desk
from proto.bookstore.v1 import warehouse_pb2


class Saga:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def see_through(self, order: Order, patience: Patience) -> Order:
        return await self._desk.see_to(order, patience, self._buy)

    async def _buy(self, order: Order) -> warehouse_pb2.PickResponse:
        desk = self._desk
        saga = desk.coordinator.saga(order.order_id)
        saga.step("debit", desk.accounts("Debit"), desk.debit(order), undo=desk.accounts("Refund"), after=())
        saga.step("take", desk.warehouse("Pick"), desk.pick(order), undo=desk.warehouse("PutBack"), after=())
        saga.step("credit", desk.payment("Credit"), desk.credit(order), undo=None, after=("debit", "take"))
        await saga.run()
        return warehouse_pb2.PickResponse()  # only the coordinator has seen it
