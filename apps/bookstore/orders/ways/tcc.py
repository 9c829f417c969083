"""TCC: set money and books aside and announce the credit; if all three could, confirm all three, else cancel them.

Nobody sees a book as sold or a merchant as paid before all is decided, and nobody else can have what is set aside.
"""

from apps.bookstore.orders.orderbook import Order
from apps.bookstore.orders.purchase import Patience
from apps.bookstore.orders.ways.desk import UNDECIDED_S, Desk
from proto.bookstore.v1 import warehouse_pb2


class Tcc:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def see_through(self, order: Order, patience: Patience) -> Order:
        return await self._desk.see_to(order, patience, self._buy)

    async def _buy(self, order: Order) -> warehouse_pb2.PickResponse:
        accounts, warehouse, payment = self._desk.accounts, self._desk.warehouse, self._desk.payment
        async with self._desk.coordinator.tcc(order.order_id, timeout_s=UNDECIDED_S) as tcc:
            debit = self._desk.debit(order)
            await tcc.call("debit", accounts("Hold"), debit, confirm=accounts("Capture"), cancel=accounts("Release"))
            picked = await tcc.call(
                "take",
                warehouse("Reserve"),
                self._desk.pick(order),
                confirm=warehouse("Ship"),
                cancel=warehouse("Release"),
                reply=warehouse_pb2.PickResponse,
            )
            credit = self._desk.credit(order)
            await tcc.call(
                "credit", payment("Announce"), credit, confirm=payment("Confirm"), cancel=payment("Withdraw")
            )
        return picked
