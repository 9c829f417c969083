"""What the coordinator relies on in its log, on both databases and both stores."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from apps.transactions.coordinator.log import Fenced, Log, LogUnavailable, Record, SessionLost
from apps.transactions.coordinator.sql import SqlLog, open_log_engine
from apps.transactions.coordinator.states import State
from control_plane.store import open_store
from control_plane.store.contract import Delete
from remora.store_log import PREFIX, StoreLog
from tests.etcd import EtcdCluster, etcd_cluster


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcd"), size=1) as cluster:
        yield cluster


@pytest.fixture
async def sql(url: str) -> AsyncIterator[SqlLog]:
    engine = open_log_engine(url, is_synchronous=False)
    made = SqlLog(engine)
    yield made
    await made.close()
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql", "embedded", "etcd"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Log]:
    match request.param:
        case "sqlite":
            url = f"sqlite:///{tmp_path / 'log.db'}"
        case "postgresql":
            url = request.getfixturevalue("postgres").new_database()
        case "embedded":
            url = str(tmp_path / "store")
        case _:
            cluster: EtcdCluster = request.getfixturevalue("etcd")
            url = cluster.target
            store = await open_store(url)
            keys = [each.key for each in (await store.range(PREFIX)).items]
            await store.txn([], [Delete(key) for key in keys])
            await store.close()
    if "sql" in request.param:
        engine = open_log_engine(url, is_synchronous=False)
        made: Log = SqlLog(engine)
    else:
        made = StoreLog(await open_store(url))
    yield made
    await made.close()
    if "sql" in request.param:
        engine.dispose()


def record(gid: str, state: State = State.RUNNING, owner: str = "s1", token: int = 1, at: float = 1.0) -> Record:
    return Record(gid, state, False, owner, token, at, b"value")


async def test_a_gid_is_created_once(log: Log) -> None:
    created = await asyncio.gather(*(log.create(replace(record("g"), value=bytes([n]))) for n in range(5)))
    assert sorted(created) == [False, False, False, False, True]
    assert await log.read("g") == replace(record("g"), value=bytes([created.index(True)]))
    assert await log.read("h") is None


async def test_only_the_holder_of_the_token_writes(log: Log) -> None:
    await log.create(record("g"))
    taken = record("g").taken_by("s2")
    await log.write(taken, 1)
    with pytest.raises(Fenced, match="its token is no longer 1"):
        await log.write(record("g", State.UNDOING), 1)
    await log.write(replace(taken, state=State.SUCCEEDED), 2)
    assert await log.read("g") == replace(taken, state=State.SUCCEEDED)


async def test_of_many_who_take_over_one_does(log: Log) -> None:
    await log.create(record("g"))
    took = await asyncio.gather(
        *(log.write(record("g").taken_by(f"s{n}"), 1) for n in range(2, 8)), return_exceptions=True
    )
    assert [each for each in took if each is None] == [None]


async def test_what_an_ended_session_leaves_are_orphans(log: Log) -> None:
    await log.open_session("s1", "one")
    await log.open_session("s2", "two")
    await log.create(record("a", owner="s1", at=2.0))
    await log.create(record("b", owner="s1", at=1.0))
    await log.create(record("c", State.SUCCEEDED, owner="s1"))
    await log.create(record("d", owner="s2"))
    assert await log.orphans(10) == []
    await log.end_session("s1", beat=7)
    assert await log.orphans(10) == [], "it has counted on since it was looked at"
    await log.end_session("s1", beat=0)
    assert [each.gid for each in await log.orphans(10)] == ["b", "a"], "oldest first, and nothing that has ended"
    assert [each.gid for each in await log.orphans(1)] == ["b"]


async def test_a_session_counts_up_until_it_is_ended(log: Log) -> None:
    await log.open_session("s1", "one")
    await log.beat("s1")
    await log.beat("s1")
    assert await log.sessions() == {"s1": 2}
    await log.open_session("s2", "one")
    assert await log.sessions() == {"s2": 0}, "the same name begins again, and the old session is over"
    with pytest.raises(SessionLost):
        await log.beat("s1")


async def test_pages_are_in_order_and_filtered(log: Log) -> None:
    for gid, state, is_dead in (("a", State.OPEN, False), ("b", State.RUNNING, True), ("c", State.FAILED, False)):
        await log.create(replace(record(gid, state), is_dead_letter=is_dead))
    assert [each.gid for each in await log.page([], False, "", 2)] == ["a", "b"]
    assert [each.gid for each in await log.page([], False, "b", 2)] == ["c"]
    assert [each.gid for each in await log.page([State.OPEN, State.FAILED], False, "", 9)] == ["a", "c"]
    assert [each.gid for each in await log.page([], True, "", 9)] == ["b"]


async def test_only_what_has_ended_is_forgotten(log: Log) -> None:
    await log.create(record("open"))
    await log.create(record("old", State.SUCCEEDED, at=1.0))
    await log.create(record("new", State.FAILED, at=9.0))
    assert await log.forget(before=5.0, limit=10) == 1
    assert [each.gid for each in await log.page([], False, "", 9)] == ["new", "open"]


async def test_writes_that_come_together_share_a_commit(sql: SqlLog) -> None:
    log = sql
    before = log.commits
    await asyncio.gather(*(log.create(record(f"g{n}")) for n in range(100)))
    assert log.commits - before <= 3
    results = await asyncio.gather(
        *(log.write(record(f"g{n}", State.SUCCEEDED), 1 if n % 2 else 5) for n in range(10)), return_exceptions=True
    )
    assert [isinstance(each, Fenced) for each in results] == [True, False] * 5, "one that fails spoils no other"


async def test_a_closed_log_says_so(log: Log) -> None:
    await log.close()
    with pytest.raises(LogUnavailable, match="closed"):
        await log.read("g")
    with pytest.raises(LogUnavailable, match="closed"):
        await log.create(record("g"))
