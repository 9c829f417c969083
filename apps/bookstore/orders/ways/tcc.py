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
        desk = self._desk
        accounts, warehouse, payment = desk.accounts, desk.warehouse, desk.payment
        tcc = desk.coordinator.tcc(order.order_id, timeout_s=UNDECIDED_S)
        debit, pick, credit = desk.debit(order), desk.pick(order), desk.credit(order)
        tcc.plan("debit", accounts("Hold"), debit, confirm=accounts("Capture"), cancel=accounts("Release"))
        tcc.plan("take", warehouse("Reserve"), pick, confirm=warehouse("Ship"), cancel=warehouse("Release"))
        tcc.plan("credit", payment("Announce"), credit, confirm=payment("Confirm"), cancel=payment("Withdraw"))
        async with tcc:
            await tcc.attempt("debit")
            picked = await tcc.attempt("take", reply=warehouse_pb2.PickResponse)
            await tcc.attempt("credit")
        return picked
