"""The etcd store when etcd, or the way to it, fails. One member; what takes three is in `test_etcd_cluster`."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio

from control_plane.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    Put,
    StoreError,
    StoreFull,
    StoreUnavailable,
    TxnResult,
)
from control_plane.store.etcd import EtcdStore
from control_plane.store.etcd_members import Patience
from tests.control_plane.store.subject import put, take
from tests.etcd import Certificates, EtcdCluster, etcd_cluster, make_certificates
from tests.ports import free_ports
from tests.relay import Relay, relay_to
from tests.tools import need
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def etcd_store(etcd: EtcdCluster) -> AsyncIterator[EtcdStore]:
    etcd.wipe()
    store = await EtcdStore.open(etcd.target)
    yield store
    await store.close()


HASTY = Patience(try_s=0.3, only_try_s=0.6, silence_s=0.3)
"""As everywhere, only sooner."""
IMPATIENT = Patience(try_s=0.3, only_try_s=0.6, silence_s=0.3, total_s=1.0)


# -- away from the start ----------------------------------------------------------------------------


async def test_etcd_away_at_start_is_a_plain_sentence() -> None:
    target = "etcd://" + ",".join(f"127.0.0.1:{port}" for port in free_ports(3))
    begin = monotonic()
    with pytest.raises(StoreUnavailable, match=r"^etcd 127\.0\.0\.1:\d+,.* cannot be reached: connection refused$"):
        await EtcdStore.open(target, IMPATIENT)
    assert monotonic() - begin < IMPATIENT.total_s + 1


async def test_a_server_that_takes_connections_and_says_nothing() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        with pytest.raises(StoreUnavailable, match="cannot be reached: no answer"):
            await EtcdStore.open(f"etcd://127.0.0.1:{server.sockets[0].getsockname()[1]}", IMPATIENT)


async def test_a_server_that_is_no_etcd(etcd: EtcdCluster) -> None:
    with pytest.raises(StoreError, match=r"^etcd 127.0.0.1:\d+ (cannot be reached|refuses|does not answer)"):
        await EtcdStore.open(f"etcd://127.0.0.1:{etcd.members[0].health_port}", IMPATIENT)


async def test_one_of_the_endpoints_is_enough(etcd: EtcdCluster) -> None:
    away = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    store = await EtcdStore.open(f"etcd://{away},{etcd.members[0].endpoint}")
    await store.get(b"a")
    await store.close()


# -- an answer that is lost -------------------------------------------------------------------------


@dataclass
class Lossy:
    """A store with two ways to the same etcd, that takes the one over a relay first."""

    store: EtcdStore
    relay: Relay
    etcd: EtcdCluster

    async def fill(self, revisions: int) -> int:
        """Write so much history under `a/`; the revision before it."""
        store = await EtcdStore.open(self.etcd.target)
        before = (await store.range(b"")).revision
        for start in range(0, revisions, 500):
            await asyncio.gather(
                *(put(store, b"a/%d" % (number % 50), b"v" * 500) for number in range(start, start + 500))
            )
        await store.close()
        return before

    async def events(self, start_revision: int) -> list[Event]:
        """What really happened, read directly."""
        store = await EtcdStore.open(self.etcd.target)
        end = await put(store, b"end")
        async with aclosing(store.watch(b"", start_revision)) as batches:
            events = [event async for event in _until(batches, end)]
        await store.close()
        return events


async def _until(batches: AsyncIterator[tuple[Event, ...]], revision: int) -> AsyncIterator[Event]:
    async with asyncio.timeout(10):
        async for batch in batches:
            for event in batch:
                if event.revision >= revision:
                    return
                yield event


@asynccontextmanager
async def _lossy(etcd: EtcdCluster) -> AsyncIterator[Lossy]:
    async with relay_to("127.0.0.1", etcd.members[0].client_port) as relay:
        store = await EtcdStore.open(f"etcd://{etcd.members[0].endpoint},127.0.0.1:{relay.port}", HASTY)
        direct, lossy = sorted(store._members._members, key=lambda each: each.endpoint.endswith(f":{relay.port}"))
        await lossy.channel.channel_ready()
        direct.blame()
        try:
            yield Lossy(store, relay, etcd)
        finally:
            await store.close()


@pytest_asyncio.fixture(loop_scope="session")
async def lossy(etcd: EtcdCluster) -> AsyncIterator[Lossy]:
    etcd.wipe()
    async with _lossy(etcd) as found:
        yield found


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_compare_and_set_whose_request_or_answer_is_lost_is_done_once_and_said_to_be(
    lossy: Lossy, lost: str
) -> None:
    before = await put(lossy.store, b"a", b"1")
    lossy.relay.loses_requests, lossy.relay.loses_answers = lost == "request", lost == "answer"
    result = await lossy.store.txn([Compare(b"a", before)], [Put(b"a", b"2"), Put(b"b", b"3"), Delete(b"c")])
    assert result == TxnResult(True, before + 1)
    assert [(event.key, event.value) for event in await lossy.events(before + 1)] == [(b"a", b"2"), (b"b", b"3")]


async def test_a_compare_and_set_that_loses_against_another_while_its_answer_is_lost_is_not_claimed(
    lossy: Lossy,
) -> None:
    """Its first try was done, and somebody else has written over it before the second."""
    before = await put(lossy.store, b"a", b"1")
    lossy.relay.loses_answers = True
    mine = asyncio.ensure_future(lossy.store.txn([Compare(b"a", before)], [Put(b"a", b"mine")]))
    other = await EtcdStore.open(lossy.etcd.target)

    async def mine_is_there() -> bool:
        found = await other.get(b"a")
        return found is not None and found.value == b"mine"

    await eventually_async(mine_is_there)
    await put(other, b"a", b"theirs")
    await other.close()
    with pytest.raises(StoreUnavailable, match="lost an answer, and the keys have changed"):
        await mine


async def test_a_comparison_that_fails_while_the_answer_is_lost_is_still_just_that(lossy: Lossy) -> None:
    before = await put(lossy.store, b"a", b"1")
    now = await put(lossy.store, b"b", b"1")
    lossy.relay.loses_answers = True
    result = await lossy.store.txn([Compare(b"a", before), Compare(b"b", before)], [Put(b"a", b"2")])
    assert result == TxnResult(False, now)
    assert await lossy.events(now + 1) == []


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_write_without_a_comparison_is_never_tried_twice(lossy: Lossy, lost: str) -> None:
    """It could overwrite what somebody else has written meanwhile; so its caller is told that nobody knows."""
    before = await put(lossy.store, b"a", b"1")
    lossy.relay.loses_requests, lossy.relay.loses_answers = lost == "request", lost == "answer"
    with pytest.raises(StoreUnavailable, match=r"no answer in time.*; the write may or may not have happened"):
        await put(lossy.store, b"a", b"2")
    assert [event.value for event in await lossy.events(before + 1)] == ([b"2"] if lost == "answer" else [])
    assert await put(lossy.store, b"a", b"3") > before, "the next call takes the other way"


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_readings_and_leases_go_on_over_another_member(lossy: Lossy, lost: str) -> None:
    store = lossy.store
    lease = await store.grant(60)
    revision = await put(store, b"a", b"1", lease)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.get(b"a"),
        lambda: store.range(b"a"),
        lambda: store.keep_alive(lease),
        lambda: store.grant(60),
        lambda: store.revoke(lease),
    ]
    for call in calls:
        begin = monotonic()
        lossy.relay.loses_requests, lossy.relay.loses_answers = lost == "request", lost == "answer"
        await call()
        assert monotonic() - begin < 3
        lossy.relay.loses_requests = lossy.relay.loses_answers = False
        lossy.relay.cut()
        for member in store._members._members:
            if not member.endpoint.endswith(f":{lossy.relay.port}"):
                await member.channel.channel_ready()
                member.blame()
    assert [event.revision for event in await lossy.events(revision)] == [revision, revision + 1]


async def test_a_watch_notices_a_member_that_keeps_its_connection_and_says_nothing(lossy: Lossy) -> None:
    before = await put(lossy.store, b"a", b"1")
    async with aclosing(lossy.store.watch(b"a", before)) as events:
        await take(events, 1)
        assert lossy.relay.requests > 0
        lossy.relay.loses_answers = True
        fresh = asyncio.ensure_future(take(events, 1))
        other = await EtcdStore.open(lossy.etcd.target)
        revision = await put(other, b"a", b"2")
        await other.close()
        begin = monotonic()
        assert [event.revision for event in await fresh] == [revision]
        assert monotonic() - begin < 3, "gRPC alone takes 4 s at best, and 14 s on a quiet connection"


async def test_a_watch_that_is_cut_again_and_again_misses_nothing_and_repeats_nothing(lossy: Lossy) -> None:
    """Also in the middle of a long history, where a header is ahead of the events that come with it."""
    before = await lossy.fill(2500)
    seen: list[int] = []
    async with aclosing(lossy.store.watch(b"a/", before + 1)) as batches:
        while len(seen) < 2500:
            async with asyncio.timeout(10):
                batch = await anext(batches)
            seen.extend(event.revision for event in batch)
            lossy.relay.cut()
    assert seen == list(range(before + 1, before + 2501))


async def test_a_watch_that_is_behind_a_compaction_is_told_so_and_until_then_has_no_gap(lossy: Lossy) -> None:
    before = await lossy.fill(2500)
    seen: list[int] = []
    async with aclosing(lossy.store.watch(b"a/", before + 1)) as batches:
        with pytest.raises(Compacted) as raised:
            async with asyncio.timeout(20):
                async for batch in batches:
                    if not seen:
                        await lossy.store.compact()
                        lossy.relay.cut()
                    seen.extend(event.revision for event in batch)
    assert seen == list(range(before + 1, before + 1 + len(seen)))
    assert len(seen) < 2500
    assert raised.value.revision == before + 2500
    listing = await lossy.store.range(b"a/")
    async with aclosing(lossy.store.watch(b"a/", listing.revision + 1)) as batches:
        fresh = await put(lossy.store, b"a/new")
        assert [event.revision for event in await take(batches, 1)] == [fresh]


# -- etcd gone and back -----------------------------------------------------------------------------


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    """One that the test may kill."""
    with etcd_cluster(tmp_path) as cluster:
        yield cluster


async def test_a_watch_survives_a_restart_of_etcd_and_the_store_too(own_etcd: EtcdCluster) -> None:
    store = await EtcdStore.open(own_etcd.target)
    lease = await store.grant(60)
    before = await put(store, b"a", b"1", lease)
    async with aclosing(store.watch(b"a", before)) as events:
        await take(events, 1)
        own_etcd.stop()
        fresh = asyncio.ensure_future(take(events, 1))
        reading = asyncio.ensure_future(store.get(b"a"))
        own_etcd.members[0].start()
        found = await reading
        assert found is not None and found.value == b"1"
        assert await store.keep_alive(lease) == 60
        revision = await put(store, b"a", b"2")
        assert [event.revision for event in await fresh] == [revision]
    await store.close()


async def test_etcd_that_stays_away_is_said_by_every_call_and_by_watches(own_etcd: EtcdCluster) -> None:
    """A watch ends too, so that its consumer knows that it is stale; a new one takes up where it ended."""
    store = await EtcdStore.open(own_etcd.target, IMPATIENT)
    lease = await store.grant(60)
    before = await put(store, b"a", b"1")
    watch = store.watch(b"a", before)
    await take(watch, 1)
    own_etcd.stop()
    await eventually_async(lambda: not any(member.is_connected for member in store._members._members))
    begin = monotonic()
    calls = [
        store.get(b"a"),
        store.range(b""),
        put(store, b"a", b"2"),
        store.txn([Compare(b"a", before)], [Put(b"a", b"2")]),
        store.grant(60),
        store.keep_alive(lease),
        store.revoke(lease),
        take(watch, 1),
    ]
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, StoreUnavailable)
        assert "connection refused" in str(result)
        assert "may or may not" not in str(result), "nothing was sent, so nothing is in doubt"
    assert monotonic() - begin < IMPATIENT.total_s + 4
    own_etcd.start()
    revision = await put(store, b"a", b"3")
    assert [event.revision for event in await take(store.watch(b"a", before + 1), 1)] == [revision]
    await store.close()


async def test_a_thousand_keep_alives_at_once_are_answered_and_when_etcd_is_away_they_all_end_in_time(
    own_etcd: EtcdCluster,
) -> None:
    patient, impatient = await EtcdStore.open(own_etcd.target), await EtcdStore.open(own_etcd.target, IMPATIENT)
    leases = [await patient.grant(60) for _ in range(20)]
    assert await asyncio.gather(*(patient.keep_alive(lease) for lease in leases * 50)) == [60] * 1000
    own_etcd.stop()
    begin = monotonic()
    results = await asyncio.gather(*(impatient.keep_alive(lease) for lease in leases * 50), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    assert monotonic() - begin < IMPATIENT.total_s + 4
    await patient.close()
    await impatient.close()


async def test_a_member_that_is_stopped_is_noticed_and_works_again_when_it_goes_on(own_etcd: EtcdCluster) -> None:
    store = await EtcdStore.open(own_etcd.target, IMPATIENT)
    await put(store, b"a", b"1")
    own_etcd.members[0].pause()
    begin = monotonic()
    with pytest.raises(StoreUnavailable, match="no answer in time"):
        await store.get(b"a")
    assert monotonic() - begin < 2
    own_etcd.members[0].resume()
    found = await eventually_async(lambda: store.get(b"a"))
    assert found is not None and found.value == b"1"
    await store.close()


async def test_a_full_etcd_refuses_writes_in_plain_words_and_goes_on_reading(tmp_path: Path) -> None:
    with etcd_cluster(tmp_path, flags=["--quota-backend-bytes", "4000000"]) as etcd:
        store = await EtcdStore.open(etcd.target)
        lease = await store.grant(60)
        await put(store, b"small", b"1", lease)
        with pytest.raises(StoreFull, match=r"is full \(mvcc: database space exceeded\): compact and defragment it"):
            for _ in range(20):
                last = await put(store, b"big", b"x" * 900_000)
        found = await store.get(b"small")
        assert found is not None and found.value == b"1"
        assert await store.keep_alive(lease) == 60
        with pytest.raises(StoreFull):
            await store.grant(60)
        async with aclosing(store.watch(b"", last)) as events:
            await take(events, 1)
            revision = (await store.txn((), [Delete(b"big")])).revision
            assert [event.revision for event in await take(events, 1)] == [revision]
        await store.compact()

        async def has_room() -> bool:
            etcd.post("maintenance/defragment")
            etcd.disarm()
            try:
                return await put(store, b"big", b"x") == revision + 1
            except StoreFull:
                return False  # etcd compacts in the background

        await eventually_async(has_room)
        await store.close()


# -- TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_etcd(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("tls"), certificates=certificates) as cluster:
        yield cluster


async def test_everything_works_over_tls_with_a_client_certificate(tls_etcd: EtcdCluster) -> None:
    for target in (tls_etcd.target, f"{tls_etcd.target}&server-name=etcd.test"):
        store = await EtcdStore.open(target)
        lease = await store.grant(60)
        revision = await put(store, b"a", b"1", lease)
        assert await store.keep_alive(lease) == 60
        assert [event.revision for event in await take(store.watch(b"", revision), 1)] == [revision]
        await store.revoke(lease)
        assert (await store.range(b"")).items == ()
        await store.close()


@pytest.mark.parametrize("case", ["no TLS", "no client certificate", "another authority", "another name"])
async def test_tls_that_does_not_fit_is_refused_in_a_sentence(
    tls_etcd: EtcdCluster, certificates: Certificates, tmp_path: Path, case: str
) -> None:
    plain = tls_etcd.target.partition("?")[0]
    target = {
        "no TLS": lambda: plain,
        "no client certificate": lambda: f"{plain}?ca={certificates.ca}",
        "another authority": lambda: plain + make_certificates(tmp_path / "other").options,
        "another name": lambda: f"{tls_etcd.target}&server-name=other.test",
    }[case]()
    with pytest.raises(StoreUnavailable, match=r"^etcd 127\.0\.0\.1:\d+ (cannot be reached|does not answer)"):
        await EtcdStore.open(target, IMPATIENT)


# -- users ------------------------------------------------------------------------------------------


def _enable_users(cluster: EtcdCluster) -> EtcdCluster:
    cluster.enable_users("mesh", "s:e@c/r", b"/mesh/")
    return cluster


@pytest.fixture(scope="module")
def users_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Tokens that are kept by the members."""
    with etcd_cluster(tmp_path_factory.mktemp("users")) as cluster:
        yield _enable_users(cluster)


@pytest.fixture(scope="module")
def jwt_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Signed tokens that end after a second, whether they are used or not."""
    directory = tmp_path_factory.mktemp("jwt")
    openssl = need("openssl")
    for command in (
        ["genrsa", "-out", "private.pem", "2048"],
        ["rsa", "-in", "private.pem", "-pubout", "-out", "public.pem"],
    ):
        subprocess.run([openssl, *command], check=True, capture_output=True, cwd=directory)
    token = f"jwt,pub-key={directory}/public.pem,priv-key={directory}/private.pem,sign-method=RS256,ttl=1s"
    with etcd_cluster(directory, flags=["--auth-token", token]) as cluster:
        yield _enable_users(cluster)


AS_MESH = "mesh:s%3Ae%40c%2Fr@"


async def test_a_user_with_a_password_is_let_in(users_etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMORA_ETCD_USER", "mesh")
    monkeypatch.setenv("REMORA_ETCD_PASSWORD", "s:e@c/r")
    for target in (users_etcd.target_as(AS_MESH), users_etcd.target_as("mesh@"), users_etcd.target):
        store = await EtcdStore.open(target)
        lease = await store.grant(60)
        revision = await put(store, b"/mesh/a", b"1", lease)
        assert [event.revision for event in await take(store.watch(b"/mesh/", revision), 1)] == [revision]
        assert await store.keep_alive(lease) == 60
        assert len((await store.range(b"/mesh/")).items) == 1
        await store.close()


async def test_what_a_user_may_not_is_refused_and_not_tried_for_ever(users_etcd: EtcdCluster) -> None:
    store = await EtcdStore.open(users_etcd.target_as(AS_MESH))
    revision = await put(store, b"/mesh/a")
    begin = monotonic()
    for call in (
        store.get(b"/other"),
        store.range(b""),
        put(store, b"/other", b"1"),
        anext(store.watch(b"/other", revision)),
    ):
        with pytest.raises(StoreError, match=r"refuses: .*permission denied"):
            await call
    assert monotonic() - begin < 2
    await store.close()


@pytest.mark.parametrize(
    ("user_info", "says"),
    [
        ("mesh:wrong@", "authentication failed, invalid user ID or password"),
        ("nobody:wrong@", "authentication failed, invalid user ID or password"),
        ("", "asks for a user and a password; set REMORA_ETCD_USER and REMORA_ETCD_PASSWORD"),
    ],
)
async def test_who_is_not_let_in_is_told_at_once(users_etcd: EtcdCluster, user_info: str, says: str) -> None:
    begin = monotonic()
    with pytest.raises(StoreError, match=says) as raised:
        await EtcdStore.open(users_etcd.target_as(user_info))
    assert not isinstance(raised.value, StoreUnavailable)
    assert "wrong" not in str(raised.value)
    assert monotonic() - begin < 2


async def test_a_password_for_an_etcd_without_users_is_no_error(etcd: EtcdCluster) -> None:
    etcd.wipe()
    store = await EtcdStore.open(etcd.target_as("me:secret@"))
    assert await put(store, b"a") > 0
    await store.close()


async def test_a_token_that_etcd_has_forgotten_is_renewed_once_for_all_callers(users_etcd: EtcdCluster) -> None:
    """A member forgets its tokens when the user's password is set anew, when they end, and when it restarts."""
    store = await EtcdStore.open(users_etcd.target_as(AS_MESH))
    lease = await store.grant(60)
    before = await put(store, b"/mesh/a", b"1")
    async with aclosing(store.watch(b"/mesh/", before)) as events:
        await take(events, 1)
        old = store._members._token
        root = users_etcd.post("auth/authenticate", {"name": "root", "password": "root"})["token"]
        users_etcd.post("auth/user/changepw", {"name": "mesh", "password": "s:e@c/r"}, root)
        results = await asyncio.gather(
            *(store.get(b"/mesh/a") for _ in range(20)),
            put(store, b"/mesh/a", b"2"),
            store.keep_alive(lease),
            take(store.watch(b"/mesh/", before), 1),
        )
        assert all(results)
        assert store._members._token not in (old, None)
        assert [event.value for event in await take(events, 1)] == [b"2"]
    await store.close()


async def test_tokens_that_end_are_renewed_under_way(jwt_etcd: EtcdCluster) -> None:
    """Three lives of a token, through which not a call fails and a watch stays."""
    store = await EtcdStore.open(jwt_etcd.target_as(AS_MESH))
    lease = await store.grant(60)
    before = await put(store, b"/mesh/n", b"0")
    tokens: set[str | None] = set()
    revisions: list[int] = []

    async def has_seen_three() -> bool:
        tokens.add(store._members._token)
        revisions.append(await put(store, b"/mesh/n", b"%d" % len(revisions)))
        assert await store.keep_alive(lease) == 60
        assert (await store.range(b"/mesh/")).items
        return len(tokens) >= 3

    async with aclosing(store.watch(b"/mesh/", before + 1)) as events:
        await eventually_async(has_seen_three, timeout_s=15)
        assert [event.revision for event in await take(events, len(revisions))] == revisions
    await store.close()


async def test_a_change_of_etcds_users_makes_signed_tokens_old_and_they_are_renewed(jwt_etcd: EtcdCluster) -> None:
    store = await EtcdStore.open(jwt_etcd.target_as(AS_MESH))
    await put(store, b"/mesh/a", b"1")
    for number in range(3):
        root = jwt_etcd.post("auth/authenticate", {"name": "root", "password": "root"})["token"]
        jwt_etcd.post("auth/role/add", {"name": f"role-{number}-{monotonic()}"}, root)
        await put(store, b"/mesh/a", b"2")
        revision = await put(store, b"/mesh/a", b"3")
        assert [event.revision for event in await take(store.watch(b"/mesh/", revision), 1)] == [revision]
    await store.close()
