"""What the ways have in common: whom a purchase concerns, with which requests, and how an order is closed when it has ended.

An order and the notice about it are written in one local transaction; the relay beside the server delivers the notice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from sqlalchemy import Connection

from apps.bookstore import calling, catalogue
from apps.bookstore.database import Database
from apps.bookstore.edge import refusal_of
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order
from apps.bookstore.orders.purchase import CalleeFailed, Patience
from apps.bookstore.refusals import Reason
from apps.transactions import outbox
from apps.transactions.client import NotEnded, RolledBack, Transactions
from proto.bookstore.v1 import accounts_pb2, notification_pb2, orders_pb2, payment_pb2, warehouse_pb2
from proto.transactions.v1 import coordinator_pb2 as pb

END_WAIT_S: Final = 1.0
"""For what is taken back to be gone."""
MARGIN_S: Final = 1.0
"""The coordinator answers, done or not, so long before it counts as away."""
UNDECIDED_S: Final = 6.0
"""What is set aside or prepared for an order whose process died is held for so long, unless the settler goes on with it before."""
Buy = Callable[[Order], Awaitable[warehouse_pb2.PickResponse]]


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the others are called: HOST:PORT."""

    accounts: str
    warehouse: str
    payment: str
    notification: str
    orders: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Targets":
        return cls(
            accounts=environment.get("ACCOUNTS_TARGET") or calling.ACCOUNTS,
            warehouse=environment.get("WAREHOUSE_TARGET") or calling.WAREHOUSE,
            payment=environment.get("PAYMENT_TARGET") or calling.PAYMENT,
            notification=environment.get("NOTIFICATION_TARGET") or calling.NOTIFICATION,
            orders=environment.get("ORDERS_TARGET") or calling.ORDERS,
        )


class Participant:
    """A service as the address of branches."""

    def __init__(self, target: str, service: ServiceDescriptor) -> None:
        self.target = target
        self._prefix = f"grpc://{target}/{service.full_name}"

    def __call__(self, method: str) -> str:
        return f"{self._prefix}/{method}"


class Desk:
    """One per process."""

    def __init__(self, database: Database, coordinator: Transactions, targets: Targets) -> None:
        self.database = database
        self.coordinator = coordinator
        self.accounts = Participant(targets.accounts, accounts_pb2.DESCRIPTOR.services_by_name["Accounts"])
        self.warehouse = Participant(targets.warehouse, warehouse_pb2.DESCRIPTOR.services_by_name["Warehouse"])
        self.payment = Participant(targets.payment, payment_pb2.DESCRIPTOR.services_by_name["Payment"])
        self.orders = Participant(targets.orders, orders_pb2.DESCRIPTOR.services_by_name["Orders"])
        notification = notification_pb2.DESCRIPTOR.services_by_name["Notification"]
        self.notification = Participant(targets.notification, notification)
        self.relay = outbox.Relay(database.engine, coordinator.caller)

    async def see_to(self, order: Order, patience: Patience, buy: Buy) -> Order:
        """Buy, and close the order by how that ended. Raises CalleeFailed if nobody knows yet."""
        if order.state not in orderbook.OPEN:
            return order
        if catalogue.find(order.book) is None:
            return await self.reject(order, Reason.NO_SUCH_BOOK, f'no book "{order.book}" in the catalogue')
        try:
            async with asyncio.timeout_at(patience.ends_at):
                picked = await buy(order)
        except RolledBack as error:
            return await self._taken_back(order, Reason.TAKEN_BACK, error.reason)
        except NotEnded as error:
            raise CalleeFailed(order, "transactions", grpc.StatusCode.UNAVAILABLE, str(error)) from None
        except TimeoutError:
            raise CalleeFailed(order, "somebody", grpc.StatusCode.DEADLINE_EXCEEDED, "too late") from None
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED:
                raise CalleeFailed(order, "somebody", error.code(), error.details() or "") from None
            refusal = refusal_of(error)
            reason = Reason.TAKEN_BACK if refusal is None else refusal.reason
            return await self._taken_back(order, reason, error.details() or "")
        return await self.buy(order, picked)

    async def buy(self, order: Order, picked: warehouse_pb2.PickResponse) -> Order:
        """All of it has happened."""
        return await self._close(order, orderbook.bought, self.amount(order), picked.version, picked.instance)

    async def reject(self, order: Order, reason: Reason, text: str) -> Order:
        """Nothing of it has happened, and nothing will."""
        return await self._close(order, orderbook.turned_down, reason, text)

    async def settle(self, order_id: str) -> Order | None:
        """What was to follow has happened; None if there is no such order."""
        order = await self.database.look(orderbook.find, order_id)
        return None if order is None else await self._close(order, orderbook.followed)

    async def _taken_back(self, order: Order, reason: Reason, text: str) -> Order:
        """Reject the order once nothing of it remains. Raises CalleeFailed if that is not yet so."""
        asked = pb.AbortRequest(gid=order.order_id, reason=text[:200], wait_s=END_WAIT_S)
        try:
            ended = await self.coordinator.stub.Abort(asked, timeout=END_WAIT_S + MARGIN_S)
        except grpc.aio.AioRpcError as error:
            raise CalleeFailed(order, "transactions", error.code(), error.details() or "") from None
        if ended.state != pb.FAILED:
            raise CalleeFailed(order, "transactions", grpc.StatusCode.UNAVAILABLE, "it is being taken back")
        return await self.reject(order, reason, text)

    async def _close(self, order: Order, step: Callable[..., Order | None], *values: object) -> Order:
        def close(tx: Connection) -> Order:
            closed = step(tx, order.order_id, *values)
            if closed is None:  # somebody else was faster
                found = orderbook.find(tx, order.order_id)
                assert found is not None
                return found
            notice = notification_pb2.Notice(order_id=order.order_id, reader=order.reader, text=_notice(closed))
            outbox.publish(tx, self.notification("Notify"), notice, event=f"{order.order_id}.notice")
            return closed

        closed = await self.database.run(close)
        self.relay.hint()
        return closed

    def amount(self, order: Order) -> int:
        """Price of all copies."""
        book = catalogue.find(order.book)
        assert book is not None
        return book.price_cents * order.copies

    def debit(self, order: Order) -> accounts_pb2.DebitRequest:
        return accounts_pb2.DebitRequest(order_id=order.order_id, reader=order.reader, amount_cents=self.amount(order))

    def pick(self, order: Order) -> warehouse_pb2.PickRequest:
        return warehouse_pb2.PickRequest(order_id=order.order_id, book=order.book, copies=order.copies)

    def credit(self, order: Order) -> payment_pb2.CreditRequest:
        book = catalogue.find(order.book)
        assert book is not None
        return payment_pb2.CreditRequest(
            order_id=order.order_id, merchant=book.merchant, amount_cents=self.amount(order)
        )


def _notice(order: Order) -> str:
    what = f'{order.copies} of "{order.book}"'
    if order.state is orderbook.State.SETTLED:
        return f"{what}: bought for {order.amount_cents / 100:.2f}"
    return f"{what}: not bought: {order.explanation}"[:200]
