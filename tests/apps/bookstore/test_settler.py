"""One round after the other, against real services."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from sqlalchemy import select

from apps.bookstore import calling
from apps.bookstore.database import Database
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.orderbook import Order, State
from apps.bookstore.orders.purchase import Purchases
from apps.bookstore.orders.settler import LONGEST_BACKOFF_MS, MOST_IN_ROUND, Settler, now_ms
from tests.apps.bookstore.shop import Gate, Pass, Shop, failing, gate
from tests.waiting import eventually_async


@dataclass
class Desk:
    """A settler, its orders, and a gate before the warehouse."""

    database: Database
    settler: Settler
    warehouse: Gate

    async def record(self, *order_ids: str) -> None:
        for order_id in order_ids:
            order = Order(order_id, "zoe", "deep-currents", 1)
            await self.database.run(orderbook.record, order, now_ms(), now_ms())

    async def states(self) -> list[State]:
        return [order.state for order in await self.database.look(orderbook.everything)]

    async def dues(self) -> list[int]:
        """Milliseconds from now until each open order is due."""
        due = orderbook.ORDERS.c.due_ms
        rows = await self.database.look(lambda tx: tx.scalars(select(due).where(due.is_not(None))).all())
        return [row - now_ms() for row in rows]


@pytest.fixture
async def desk(shop: Shop, tmp_path: Path) -> AsyncIterator[Desk]:
    database = Database(tmp_path / orderbook.FILE)
    await database.run(orderbook.prepare)
    with gate(shop.targets["warehouse"]) as before:
        async with (
            calling.channel(before.address) as warehouse,
            calling.channel(shop.targets["accounts"]) as accounts,
        ):
            yield Desk(database, Settler(database, Purchases(database, warehouse, accounts)), before)
    database.close()


async def test_what_is_due_is_settled(desk: Desk) -> None:
    await desk.record("due-1", "due-2", "due-3")
    await desk.settler.settle_due()
    assert await desk.states() == [State.SETTLED] * 3


async def test_what_the_warehouse_refuses_is_rejected(desk: Desk) -> None:
    wanted = Order("unknown", "zoe", "never-printed", 1)
    await desk.database.run(orderbook.record, wanted, now_ms(), now_ms())
    await desk.settler.settle_due()
    assert await desk.states() == [State.REJECTED]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_a_service_that_is_away_is_asked_once_a_round_and_every_order_put_off_a_little(
    desk: Desk, code: grpc.StatusCode
) -> None:
    calls: list[int] = []
    away = failing(1000, code)

    def counted(send: Pass, context: grpc.ServicerContext) -> bytes:
        calls.append(1)
        return away(send, context)

    desk.warehouse.rules["Take"] = counted
    ids = [f"away-{code.name}-{number}" for number in range(5)]
    await desk.record(*ids)
    await desk.settler.settle_due()
    assert len(calls) == 1
    assert await desk.states() == [State.PENDING] * 5
    assert all(0 < due <= LONGEST_BACKOFF_MS for due in await desk.dues())
    desk.warehouse.rules.clear()

    async def all_settled() -> bool:
        await desk.settler.settle_due()
        return await desk.states() == [State.SETTLED] * 5

    await eventually_async(all_settled)


async def test_an_order_that_cannot_go_on_does_not_hold_up_the_others(desk: Desk) -> None:
    desk.warehouse.rules["Take"] = failing(1, grpc.StatusCode.PERMISSION_DENIED)
    await desk.record("stuck", "next-1", "next-2")
    await desk.settler.settle_due()
    assert sorted(await desk.states()) == [State.PENDING, State.SETTLED, State.SETTLED]
    assert all(0 < due <= LONGEST_BACKOFF_MS for due in await desk.dues())


async def test_a_round_takes_no_more_than_its_share(desk: Desk) -> None:
    await desk.record(*(f"many-{number}" for number in range(MOST_IN_ROUND + 1)))
    await desk.settler.settle_due()
    assert sorted(await desk.states()).count(State.PENDING) == 1
