"""The usual way of a purchase, forward: take the copies, then charge for them; each step is called, then recorded.

The warehouse may refuse, so it comes first; accounts never does, so whatever is taken can be charged in the end (forward recovery: nothing
is ever undone). Between any two lines here the process may die. What is recorded is then behind what was done by at most one call, and
that call is repeated with the same order_id, which does nothing twice. So may two at once carry the same order: the handler and the settler, or two
handlers of a request that was sent twice.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import random
from typing import Any, Final, Protocol, TypeVar

import grpc
from google.protobuf.message import Message

from apps.bookstore.database import Database
from apps.bookstore.edge import refusal_of
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order, State
from apps.bookstore.refusals import RECORDED
from proto.bookstore.v1 import accounts_pb2, accounts_pb2_grpc, warehouse_pb2, warehouse_pb2_grpc

CALL_TIMEOUT_S: Final = 1.0
"""Of one call to another service."""
FIRST_BACKOFF_S: Final = 0.03
"""Before a call is repeated; doubles each time, and is spread by half."""
REPEATED: Final = frozenset(
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    ]
)
"""Statuses after which the same call may go better at once. Not RESOURCE_EXHAUSTED: whoever is told to go slower does."""

Answer = TypeVar("Answer", bound=Message)


@dataclass(slots=True)
class Patience:
    """How long to bear with the callees, and how often they had to be asked again."""

    ends_at: float
    """On the event loop's clock."""
    repeats: int
    """Most repetitions of one call."""
    repeated_calls: int = 0


class CalleeFailed(Exception):
    """A service did not do its part; the order stays where it is."""

    def __init__(self, order: Order, callee: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(
            f'order "{order.order_id}" is recorded ({order.state}) and will be settled without being asked for again: '
            f"{callee} answered {code.name}: {details}"
        )
        self.code = code


class Way(Protocol):
    """How a purchase goes through the services; `ways` has others."""

    async def see_through(self, order: Order, patience: Patience) -> Order:
        """Bring an order as far as it goes now. Safe to repeat, and at once. Raises CalleeFailed; then it is somewhere on the way."""
        ...


class Purchases:
    """Carries orders to their end."""

    def __init__(self, database: Database, warehouse: grpc.aio.Channel, accounts: grpc.aio.Channel) -> None:
        self._database = database
        self._warehouse: warehouse_pb2_grpc.WarehouseAsyncStub = warehouse_pb2_grpc.WarehouseStub(warehouse)
        self._accounts: accounts_pb2_grpc.AccountsAsyncStub = accounts_pb2_grpc.AccountsStub(accounts)

    async def see_through(self, order: Order, patience: Patience) -> Order:
        """Bring an order to SETTLED or REJECTED. Raises CalleeFailed; then it is somewhere on the way."""
        while order.state in orderbook.OPEN:
            order = await (
                self._take(order, patience) if order.state is State.PENDING else self._charge(order, patience)
            )
        return order

    async def _take(self, order: Order, patience: Patience) -> Order:
        request = warehouse_pb2.TakeRequest(order_id=order.order_id, book=order.book, copies=order.copies)
        try:
            answer = await _call(self._warehouse.Take, request, patience)
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if refusal is None or refusal.reason not in RECORDED:
                raise CalleeFailed(order, "warehouse", error.code(), error.details() or "") from None
            return await self._database.run(orderbook.rejected, order.order_id, refusal.reason, refusal.text)
        return await self._database.run(
            orderbook.taken, order.order_id, answer.amount_cents, answer.version, answer.instance
        )

    async def _charge(self, order: Order, patience: Patience) -> Order:
        request = accounts_pb2.ChargeRequest(
            order_id=order.order_id, reader=order.reader, amount_cents=order.amount_cents
        )
        try:
            await _call(self._accounts.Charge, request, patience)
        except grpc.aio.AioRpcError as error:
            raise CalleeFailed(order, "accounts", error.code(), error.details() or "") from None
        return await self._database.run(orderbook.settled, order.order_id)


async def _call(method: Callable[..., Any], request: Message, patience: Patience) -> Any:
    """Call, and again while there is patience. Raises AioRpcError."""
    now = asyncio.get_running_loop().time
    repeats = 0
    while True:
        try:
            # Less than nothing is a deadline as well: gRPC then answers DEADLINE_EXCEEDED without a call.
            return await method(request, timeout=min(CALL_TIMEOUT_S, patience.ends_at - now()))
        except grpc.aio.AioRpcError as error:
            pause_s = FIRST_BACKOFF_S * 2**repeats * (0.5 + random())
            is_over = repeats >= patience.repeats or now() + pause_s >= patience.ends_at
            if is_over or error.code() not in REPEATED:
                raise
        await asyncio.sleep(pause_s)
        repeats += 1
        patience.repeated_calls += 1
