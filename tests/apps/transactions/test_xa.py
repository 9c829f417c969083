"""Prepared transactions of a real PostgreSQL: one decision for all branches, and nobody left in doubt."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from sqlalchemy import Engine, insert

from apps.transactions.barrier import Contradiction, create_tables, prepared
from apps.transactions.barrier.session import Session
from apps.transactions.client import RolledBack
from apps.transactions.context import BranchCall, Op
from apps.transactions.xa import Decision, ask, resolve
from tests.apps.transactions import bank
from tests.apps.transactions.bank import holdings, request
from tests.apps.transactions.live import Participant, Replica, participant, replica
from tests.postgres import Postgres
from tests.waiting import eventually, eventually_async


@pytest.fixture
def database(postgres: Postgres) -> Engine:
    engine = bank.open_engine(postgres.new_database())
    bank.open_bank(engine, {"reader": 100})
    return engine


def step(database: Engine, op: Op, amount: int = -30, gid: str = "g") -> tuple[str, bytes, bool]:
    session = Session(database, BranchCall(gid, "b", op))
    try:
        answer = session.enter()
        if answer is None:
            answer = session.leave(bank.move(session.connection, session.call, request("reader", amount)))
        session.commit()
    finally:
        session.close()
    return answer.outcome.value, answer.reply, answer.is_repeat


def in_doubt(database: Engine) -> list[str]:
    return [f"{each.gid}/{each.branch}" for each in prepared.in_doubt(database)]


def test_a_prepared_branch_is_seen_by_nobody_until_it_is_committed(database: Engine) -> None:
    assert step(database, Op.PREPARE) == ("done", b'{"left": 70}', False)
    assert (holdings(database), in_doubt(database)) == ({"reader": (100, 0)}, ["g/b"])
    assert step(database, Op.PREPARE) == ("done", b'{"left": 70}', True), "a repetition gets the same answer in doubt"
    assert step(database, Op.COMMIT) == ("done", b"", False)
    assert step(database, Op.COMMIT) == ("done", b"", True)
    assert step(database, Op.PREPARE) == ("done", b'{"left": 70}', True), "and behind the commit"
    assert (holdings(database), in_doubt(database)) == ({"reader": (70, 0)}, [])


def test_a_branch_that_is_rolled_back_keeps_a_late_prepare_out(database: Engine) -> None:
    step(database, Op.PREPARE)
    assert step(database, Op.ROLLBACK)[0] == "done"
    assert step(database, Op.ROLLBACK)[0] == "empty"
    assert step(database, Op.PREPARE)[0] == "blocked"
    assert step(database, Op.ROLLBACK, gid="never")[0] == "empty"
    assert step(database, Op.PREPARE, gid="never")[0] == "blocked"
    assert (holdings(database), in_doubt(database)) == ({"reader": (100, 0)}, [])


def test_committed_and_rolled_back_exclude_each_other(database: Engine) -> None:
    step(database, Op.PREPARE)
    step(database, Op.COMMIT)
    with pytest.raises(Contradiction, match="is committed and cannot be rolled back"):
        step(database, Op.ROLLBACK)
    step(database, Op.ROLLBACK, gid="h")
    with pytest.raises(Contradiction, match="prepare is blocked, so there is nothing to commit"):
        step(database, Op.COMMIT, gid="h")
    with pytest.raises(Contradiction, match="prepare is not there"):
        step(database, Op.COMMIT, gid="i")


def test_a_rollback_that_races_its_prepare_leaves_nothing_in_doubt(database: Engine) -> None:
    for number in range(6):
        gid = f"race-{number}"
        with ThreadPoolExecutor(2) as threads:
            preparing = threads.submit(step, database, Op.PREPARE, -1, gid)
            rolling = threads.submit(step, database, Op.ROLLBACK, -1, gid)
            preparing.exception()
            if rolling.exception() is not None:  # it waited for the prepare and gave up: it is asked again
                step(database, Op.ROLLBACK, -1, gid)
        assert (in_doubt(database), holdings(database)) == ([], {"reader": (100, 0)}), gid


async def test_what_nobody_decided_is_rolled_back_and_what_was_decided_is_done(database: Engine) -> None:
    known = {"yes": Decision.COMMIT, "no": Decision.ROLL_BACK, "open": Decision.WAIT}
    with database.begin() as connection:
        for name in known:
            connection.execute(insert(bank.HOLDINGS).values(name=name, free=0, frozen=0))
    for gid in known:
        session = Session(database, BranchCall(gid, "b", Op.PREPARE))
        session.enter()
        session.leave(bank.move(session.connection, session.call, request(gid, 10)))
        session.commit()
        session.close()

    async def decide(gid: str) -> Decision:
        return known[gid]

    decisions = await resolve(database, decide)
    assert {call.gid: decision for call, decision in decisions.items()} == known
    assert in_doubt(database) == ["open/b"]
    assert {name: free for name, (free, _) in holdings(database).items() if name in known} == {
        "yes": 10,
        "no": 0,
        "open": 0,
    }
    step(database, Op.ROLLBACK, gid="open")


def test_a_participant_starts_while_a_branch_is_in_doubt(database: Engine) -> None:
    step(database, Op.PREPARE)
    with database.begin() as connection:  # whoever waits for a lock fails, and does not hang
        connection.exec_driver_sql(f"ALTER DATABASE {database.url.database} SET lock_timeout = 500")
    database.dispose()
    create_tables(database)
    assert step(database, Op.COMMIT)[0] == "done"


# Through the coordinator


class Shop:
    def __init__(self, warehouse: Participant, accounts: Participant, one: Replica) -> None:
        self.warehouse = warehouse
        self.accounts = accounts
        self.one = one

    async def buy(self, gid: str, price: int, timeout_s: float = 30.0) -> None:
        async with self.one.client.xa(gid, timeout_s=timeout_s) as xa:
            await xa.call("ship", self.warehouse.url("Move"), request("books", -1))
            await xa.call("debit", self.accounts.url("Move"), request("reader", -price))
            await xa.call("credit", self.accounts.url("Move"), request("till", price))

    def held(self) -> tuple[int, int, int]:
        accounts = holdings(self.accounts.database)
        return holdings(self.warehouse.database)["books"][0], accounts["reader"][0], accounts["till"][0]

    def in_doubt(self) -> list[str]:
        return in_doubt(self.warehouse.database) + in_doubt(self.accounts.database)


@pytest.fixture
async def shop(postgres: Postgres, tmp_path: Path) -> AsyncIterator[Shop]:
    async with (
        participant(postgres.new_database(), {"books": 10}) as warehouse,
        participant(postgres.new_database(), {"reader": 100, "till": 0}) as accounts,
        replica(f"sqlite:///{tmp_path / 'log.db'}") as one,
    ):
        yield Shop(warehouse, accounts, one)


async def test_all_branches_commit(shop: Shop) -> None:
    await shop.buy("g", 30)
    assert (shop.held(), shop.in_doubt()) == ((9, 70, 30), [])


async def test_one_refusal_rolls_all_branches_back(shop: Shop) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="reader has too little"):
        await shop.buy("g", 130)
    await eventually_async(lambda: asyncio.to_thread(lambda: shop.in_doubt() == []))
    assert shop.held() == (10, 100, 0)


async def test_an_initiator_that_vanishes_leaves_nothing_in_doubt(shop: Shop) -> None:
    xa = shop.one.client.xa("g", timeout_s=0.3)
    await xa.__aenter__()
    await xa.call("ship", shop.warehouse.url("Move"), request("books", -1))
    assert shop.in_doubt() == ["g/ship"]
    await eventually_async(lambda: asyncio.to_thread(lambda: shop.in_doubt() == []))
    with pytest.raises(RolledBack):
        await xa.__aexit__(None, None, None)
    assert shop.held() == (10, 100, 0)


async def test_a_participant_asks_the_log_about_what_it_is_left_with(shop: Shop) -> None:
    # A branch that the coordinator was never told of: nobody will ever call for it.
    session = Session(shop.warehouse.database, BranchCall("unknown", "ship", Op.PREPARE))
    session.enter()
    session.leave(bank.move(session.connection, session.call, request("books", -1)))
    session.commit()
    session.close()
    assert shop.in_doubt() == ["unknown/ship"]
    await resolve(shop.warehouse.database, ask(shop.one.client))
    eventually(lambda: shop.in_doubt() == [])
    assert shop.held() == (10, 100, 0)
