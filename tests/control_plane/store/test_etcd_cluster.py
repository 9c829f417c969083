"""The etcd store on three members, of which some are killed, stopped or cut off."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic

import pytest
import pytest_asyncio

from control_plane.store.contract import Compare, Event, Put, Store, StoreUnavailable
from control_plane.store.etcd import EtcdStore
from control_plane.store.etcd_members import PATIENCE
from tests.control_plane.store.subject import put
from tests.etcd import EtcdCluster, EtcdMember, etcd_cluster
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("three"), size=3) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def store(cluster: EtcdCluster) -> AsyncIterator[EtcdStore]:
    """On a cluster that is whole, whatever the test before did to it."""
    for member in cluster.members:
        if member.is_running:
            member.resume()
    await asyncio.to_thread(cluster.start)
    await asyncio.to_thread(cluster.wipe)
    found = await EtcdStore.open(cluster.target)
    yield found
    await found.close()


@dataclass
class Traffic:
    """Writers, a watch and a lease on one store, and what became of them."""

    acknowledged: dict[int, bytes] = field(default_factory=dict)
    """By revision: the value."""
    in_doubt: list[bytes] = field(default_factory=list)
    failures: int = 0
    """Writes that ended with StoreUnavailable."""
    events: list[Event] = field(default_factory=list)
    renewed_at: list[float] = field(default_factory=list)
    longest_write_s: float = 0.0

    async def write(self, store: Store, key: bytes) -> None:
        """One compare-and-set after the other, so each may be tried again."""
        number, revision = 0, 0
        while True:
            number += 1
            value = b"%s %d" % (key, number)
            begin = monotonic()
            try:
                result = await store.txn([Compare(key, revision)], [Put(key, value)])
            except asyncio.CancelledError:
                self.in_doubt.append(value)
                raise
            except StoreUnavailable:
                self.failures += 1
                self.in_doubt.append(value)
                revision = await _insist(store, key)
                continue
            assert result.succeeded, "nobody else writes this key"
            self.longest_write_s = max(self.longest_write_s, monotonic() - begin)
            self.acknowledged[result.revision] = value
            revision = result.revision

    async def watch(self, store: Store, start_revision: int) -> None:
        next_revision = start_revision
        while True:
            with suppress(StoreUnavailable):
                async with aclosing(store.watch(b"w/", next_revision)) as batches:
                    async for batch in batches:
                        self.events.extend(batch)
                        next_revision = batch[-1].revision + 1

    async def keep_alive(self, store: Store, lease: int) -> None:
        """As a sidecar does it: three times as often as needed."""
        while True:
            with suppress(StoreUnavailable):
                await store.keep_alive(lease)
                self.renewed_at.append(monotonic())
            await asyncio.sleep(1)

    @property
    def newest(self) -> int:
        return max(self.acknowledged, default=0)

    async def progress(self, writes: int, timeout_s: float = 20.0) -> None:
        """Return once so many more writes are acknowledged, and the watch has seen them."""
        goal = len(self.acknowledged) + writes
        await eventually_async(lambda: len(self.acknowledged) >= goal, timeout_s=timeout_s)
        newest = self.newest
        await eventually_async(
            lambda: bool(self.events) and self.events[-1].revision >= newest,
            timeout_s=timeout_s,
            message="the watch is behind",
        )

    def check(self, start_revision: int) -> None:
        """Every acknowledged write is in the watch exactly once, in order, and nothing is there that nobody wrote."""
        revisions = [event.revision for event in self.events]
        assert revisions == sorted(set(revisions)), "out of order, or twice"
        seen = {event.revision: event.value for event in self.events}
        missing = {revision: value for revision, value in self.acknowledged.items() if seen.get(revision) != value}
        assert not missing, f"acknowledged and not seen: {missing}"
        others = [value for revision, value in seen.items() if revision not in self.acknowledged]
        assert set(others) <= set(self.in_doubt), "seen, and neither acknowledged nor in doubt"
        assert len(set(seen.values())) == len(seen), "one write was done twice"


async def _insist(store: Store, key: bytes) -> int:
    while True:
        with suppress(StoreUnavailable):
            found = await store.get(key)
            return found.mod_revision if found else 0


async def _stop(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {asyncio.CancelledError}, results


@asynccontextmanager
async def traffic_on(store: EtcdStore) -> AsyncIterator[Traffic]:
    """Traffic as long as the context lasts; then it is checked that no acknowledged write is lost."""
    traffic = Traffic()
    lease = await store.grant(5)
    await put(store, b"lease", b"", lease)
    start = (await store.range(b"")).revision + 1
    writers = [asyncio.create_task(traffic.write(store, b"w/%d" % number)) for number in range(4)]
    others = [asyncio.create_task(traffic.watch(store, start)), asyncio.create_task(traffic.keep_alive(store, lease))]
    try:
        await traffic.progress(50)
        yield traffic
        await _stop(writers)
        await eventually_async(lambda: traffic.events[-1].revision >= traffic.newest)
        await _stop(others)
    finally:
        for task in (*writers, *others):
            task.cancel()
    traffic.check(start)
    assert await store.get(b"lease") is not None, "the lease was lost though it was kept alive"


async def test_kill_9_of_the_leader_loses_no_acknowledged_write_and_no_event(
    store: EtcdStore, cluster: EtcdCluster
) -> None:
    async with traffic_on(store) as traffic:
        leader = await asyncio.to_thread(cluster.leader)
        leader.kill()
        await traffic.progress(50)
        leader.start()
        await traffic.progress(50)
    assert traffic.failures == 0, "a compare-and-set outlives the loss of a member"
    assert traffic.longest_write_s < PATIENCE.total_s


def _used(store: EtcdStore, cluster: EtcdCluster) -> EtcdMember:
    """The member that the store calls now."""
    used = min(
        (member for member in store._members._members if member.is_connected), key=lambda member: member.blamed_at
    )
    return next(member for member in cluster.members if member.endpoint == used.endpoint)


@pytest.mark.slow
async def test_a_member_that_is_stopped_is_left_within_seconds(store: EtcdStore, cluster: EtcdCluster) -> None:
    """SIGSTOP: its connections stay, which gRPC notices after 14 s by itself. Every member gets its turn, also the leader."""
    async with traffic_on(store) as traffic:
        for _ in range(3):
            member = _used(store, cluster)
            member.pause()
            begin = monotonic()
            await traffic.progress(50)
            assert monotonic() - begin < PATIENCE.total_s + 2 * PATIENCE.silence_s
            member.resume()
            await asyncio.to_thread(cluster.start)
    assert traffic.longest_write_s < PATIENCE.total_s


@pytest.mark.slow
async def test_two_of_three_gone_is_said_by_reads_writes_and_watches_and_ends_when_they_are_back(
    store: EtcdStore, cluster: EtcdCluster
) -> None:
    async with traffic_on(store) as traffic:
        one, two = cluster.members[1:]
        one.kill()
        two.kill()
        await eventually_async(lambda: traffic.failures >= 4, timeout_s=20)
        begin = monotonic()
        with pytest.raises(StoreUnavailable, match=r"no leader|no answer in time|timed out"):
            await store.get(b"w/0")
        assert monotonic() - begin < PATIENCE.total_s + 1
        one.start()
        await traffic.progress(50)
        two.start()
        await traffic.progress(50)


@pytest.mark.slow
async def test_every_member_away_for_seconds_and_back(store: EtcdStore, cluster: EtcdCluster) -> None:
    async with traffic_on(store) as traffic:
        cluster.stop()
        with pytest.raises(StoreUnavailable, match="cannot be reached: connection refused"):
            for _ in range(20):
                await store.get(b"w/0")
        await asyncio.to_thread(cluster.start)
        await traffic.progress(50)


@pytest.mark.slow
async def test_a_rolling_restart_is_not_noticed_by_writers(store: EtcdStore, cluster: EtcdCluster) -> None:
    async with traffic_on(store) as traffic:
        for member in cluster.members:
            member.kill()
            await traffic.progress(20)
            await asyncio.to_thread(cluster.start)
            await traffic.progress(20)
    assert traffic.failures == 0
