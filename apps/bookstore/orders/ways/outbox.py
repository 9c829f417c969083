"""Reliable events: what can be refused comes first (the books); the rest is written down with the order, and will happen.

The events of one order arrive in order: debit, credit, and one to orders itself, which closes the order. They cannot be refused, so a reader
with too little money owes it: what a reader has is looked at beforehand, but between the look and the debit others may spend it.
"""

import asyncio
from typing import Final

import grpc
from sqlalchemy import Connection

from apps.bookstore import catalogue
from apps.bookstore.edge import refusal_of
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order, State
from apps.bookstore.orders.purchase import CalleeFailed, Patience
from apps.bookstore.orders.ways.desk import Desk
from apps.bookstore.refusals import OF_A_BRANCH, Reason
from apps.transactions import outbox
from apps.transactions.client import repeat
from apps.transactions.context import BranchCall, Op
from proto.bookstore.v1 import accounts_pb2, orders_pb2, warehouse_pb2

CALL_TIMEOUT_S: Final = 1.0


class Outbox:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def see_through(self, order: Order, patience: Patience) -> Order:
        if order.state is not State.PENDING:
            return order  # its events are on their way
        if catalogue.find(order.book) is None:
            return await self._desk.reject(order, Reason.NO_SUCH_BOOK, f'no book "{order.book}" in the catalogue')
        try:
            async with asyncio.timeout_at(patience.ends_at):
                picked = await self._take(order)
        except TimeoutError:
            raise CalleeFailed(order, "warehouse", grpc.StatusCode.DEADLINE_EXCEEDED, "too late") from None
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if refusal is None or refusal.reason not in OF_A_BRANCH:
                raise CalleeFailed(order, "warehouse", error.code(), error.details() or "") from None
            return await self._desk.reject(order, refusal.reason, refusal.text)
        if picked is None:
            return await self._desk.reject(order, Reason.TOO_LITTLE_MONEY, f'"{order.reader}" has too little money')
        accepted = await self._desk.database.run(self._accept, order, picked)
        self._desk.relay.hint()
        return accepted

    async def _take(self, order: Order) -> warehouse_pb2.PickResponse | None:
        """Take the books; None if the reader has too little money. An order that has its books was able to pay."""
        caller = self._desk.coordinator.caller
        branch = BranchCall(order.order_id, "take", Op.ACTION)
        asked = accounts_pb2.GetBalanceRequest(reader=order.reader).SerializeToString()
        pick = self._desk.pick(order).SerializeToString(deterministic=True)
        target = self._desk.accounts("GetBalance")
        answer = await repeat(lambda: caller.call(target, asked, None, CALL_TIMEOUT_S))
        if accounts_pb2.GetBalanceResponse.FromString(answer).balance_cents < self._desk.amount(order):
            return None
        picking = self._desk.warehouse("Pick")
        reply = await repeat(lambda: caller.call(picking, pick, branch, CALL_TIMEOUT_S), is_branch=True)
        return warehouse_pb2.PickResponse.FromString(reply)

    def _accept(self, tx: Connection, order: Order, picked: warehouse_pb2.PickResponse) -> Order:
        desk, name = self._desk, order.order_id
        accepted = orderbook.accepted(tx, name, desk.amount(order), picked.version, picked.instance)
        if accepted is None:  # somebody else was faster
            found = orderbook.find(tx, name)
            assert found is not None
            return found
        outbox.publish(tx, desk.accounts("Debit"), desk.debit(order), key=name, event=f"{name}.debit")
        outbox.publish(tx, desk.payment("Credit"), desk.credit(order), key=name, event=f"{name}.credit")
        settle = orders_pb2.SettleRequest(order_id=name)
        outbox.publish(tx, desk.orders("Settle"), settle, key=name, event=f"{name}.settle")
        return accepted
