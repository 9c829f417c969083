"""An open loop: a purchase is made when it is due, however long the ones before take; its latency counts from then.

So a slow answer does not slow the questions down and thereby hide itself. What bounds the memory is the number in flight: a purchase that
is due beyond it is skipped, and counted.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

import grpc

from apps.bookstore import calling
from apps.bookstore.catalogue import BOOKS
from apps.bookstore.shoppers.tally import Tally
from proto.bookstore.v1 import orders_pb2, orders_pb2_grpc

MOST_COPIES: Final = 3
"""That one shopper buys at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who buys what, when and where."""

    orders: str
    """Where orders is called."""
    rate: float
    """Purchases per second, evenly spaced."""
    seed: int
    """Decides reader, book and copies of each."""
    prefix: str
    """Of the order_ids; with another run's prefix and seed, its purchases are found made already."""
    duration_s: float | None = None
    """None: until stopped."""
    most_in_flight: int = 64
    timeout_s: float = 3.0
    """Deadline of a purchase."""
    readers: int = 100
    report_interval_s: float = 1.0
    """Between two lines of output."""


def purchases(plan: Plan) -> Iterator[orders_pb2.PurchaseRequest]:
    """What is bought, without end; the first of the catalogue most."""
    chance = Random(plan.seed)
    weights = [1 / rank for rank in range(1, len(BOOKS) + 1)]
    number = 0
    while True:
        yield orders_pb2.PurchaseRequest(
            order_id=f"{plan.prefix}-{plan.seed}-{number}",
            reader=f"reader-{chance.randrange(plan.readers)}",
            book=chance.choices(BOOKS, weights)[0].id,
            copies=chance.randint(1, MOST_COPIES),
        )
        number += 1


async def shop(plan: Plan, stop: asyncio.Event, say: Callable[[str], None]) -> None:
    """Buy until the time is over or `stop` is set, let what is in flight finish; `say` gets a line a second, and the final one."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    async with calling.channel(plan.orders) as channel:
        stub: orders_pb2_grpc.OrdersAsyncStub = orders_pb2_grpc.OrdersStub(channel)
        start = loop.time()
        reporter = asyncio.create_task(_report(plan, tally, start, say))
        try:
            async with asyncio.TaskGroup() as calls:
                for number, request in enumerate(purchases(plan)):
                    due = start + number / plan.rate
                    if plan.duration_s is not None and due - start >= plan.duration_s:
                        break
                    if await _stopped_by(stop, due):
                        break
                    tally.due += 1
                    if tally.in_flight >= plan.most_in_flight:
                        tally.skipped += 1
                        continue
                    tally.sent()
                    calls.create_task(_buy(stub, request, plan.timeout_s, due, tally))
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
    say(tally.line(loop.time() - start, is_final=True))


async def _stopped_by(stop: asyncio.Event, due: float) -> bool:
    """Wait until a purchase is due; True if there is to be none."""
    try:
        async with asyncio.timeout_at(due):
            return await stop.wait()
    except TimeoutError:
        return False


async def _buy(
    stub: "orders_pb2_grpc.OrdersAsyncStub",
    request: orders_pb2.PurchaseRequest,
    timeout_s: float,
    due: float,
    tally: Tally,
) -> None:
    now = asyncio.get_running_loop().time
    try:
        order = await stub.Purchase(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        tally.done(error.code().name, now() - due, None)
    else:
        tally.done(grpc.StatusCode.OK.name, now() - due, order)


async def _report(plan: Plan, tally: Tally, start: float, say: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    at = start
    while True:
        at += plan.report_interval_s
        await asyncio.sleep(at - loop.time())
        say(tally.line(loop.time() - start))
