"""The store's content in memory: kept fresh by a watch, served while the store is away."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.registry import keys, mirror, state
from control_plane.registry.mirror import Mirror
from control_plane.registry.state import State
from control_plane.resources.load import load
from control_plane.store.contract import Delete, Event, EventType, KeyValue, Put
from proto.mesh.v1 import api_pb2, service_pb2
from tests.control_plane.registry.subject import Outage, Subject, opened
from tests.control_plane.registry.test_registry import instance
from tests.waiting import eventually_async

SERVICE = "apiVersion: remora.dev/v1\nkind: Service\nmetadata: {name: NAME, namespace: shop}\nspec: {}\n"


@pytest_asyncio.fixture
async def subject(tmp_path: Path) -> AsyncIterator[Subject]:
    async with opened(tmp_path) as found:
        yield found


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(mirror, "LONGEST_BACKOFF_S", 0.02)


@asynccontextmanager
async def following(store: Outage) -> AsyncIterator[Mirror]:
    found = Mirror(store)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def service(name: str) -> api_pb2.Resource:
    (resource,) = load(SERVICE.replace("NAME", name), "f")
    return resource


async def put(subject: Subject, *names: str) -> int:
    puts = [Put(state.key_of(service(name)), state.stored(service(name))) for name in names]
    return (await subject.store.txn((), puts)).revision


def names(seen: State) -> list[str]:
    return [item.metadata.name for item in seen.of_kind("Service")]


async def test_the_state_follows_the_store(subject: Subject) -> None:
    await put(subject, "a")
    async with following(Outage(subject.store)) as followed:
        await followed.is_loaded.wait()
        assert names(followed.state) == ["a"]
        revision = await put(subject, "b", "c")
        await followed.reached(revision)
        assert names(followed.state) == ["a", "b", "c"]
        assert followed.state.revision == revision
        assert followed.state.resources[state.key_of(service("b"))].metadata.resource_version == revision
        await subject.registry.register(instance(), 10)
        await eventually_async(lambda: len(followed.state.instances) == 1)
        await subject.pass_time(11)
        await eventually_async(lambda: not followed.state.instances)


async def test_listeners_hear_of_each_transaction_once(subject: Subject) -> None:
    async with following(Outage(subject.store)) as followed:
        await followed.is_loaded.wait()
        heard: list[int] = []
        followed.on_change(lambda seen: heard.append(seen.revision))
        first, second = await put(subject, "a", "b"), await put(subject, "c")
        await followed.reached(second)
        assert heard == [first, second]


async def test_a_state_is_replaced_and_never_edited(subject: Subject) -> None:
    async with following(Outage(subject.store)) as followed:
        await followed.reached(await put(subject, "a"))
        before = followed.state
        await followed.reached(await put(subject, "b"))
        assert names(before) == ["a"]
        assert followed.state.resources[state.key_of(service("a"))] is before.resources[state.key_of(service("a"))]


async def test_while_the_store_is_away_the_last_state_is_served_and_it_is_said_since_when(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    store = Outage(subject.store)
    async with following(store) as followed:
        await followed.reached(await put(subject, "a"))
        assert (followed.stale_since, followed.stale_s) == (None, 0.0)
        await store.go_away()
        await put(subject, "b")  # by another control plane; the watch breaks here
        await eventually_async(lambda: followed.stale_since is not None)
        since = followed.stale_since
        assert names(followed.state) == ["a"]
        tries = store.reads
        await eventually_async(lambda: store.reads > tries + 2)
        assert followed.stale_since == since, "since it went away, not since the last try"
        assert followed.stale_s > 0
        revision = await put(subject, "c")
        await store.come_back()
        await followed.reached(revision)
        assert names(followed.state) == ["a", "b", "c"]
        assert followed.stale_since is None
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["serving the last state: store 127.0.0.1:2379 cannot be reached"], "once, and not at every try"


async def test_what_was_deleted_while_the_store_was_away_is_gone(subject: Subject) -> None:
    store = Outage(subject.store)
    async with following(store) as followed:
        await followed.reached(await put(subject, "a", "b"))
        await store.go_away()
        await put(subject, "c")
        await eventually_async(lambda: followed.stale_since is not None)
        await subject.store.txn((), [Delete(state.key_of(service("a")))])
        await store.come_back()
        await eventually_async(lambda: names(followed.state) == ["b", "c"])


async def test_a_watch_that_is_too_far_behind_begins_anew(subject: Subject) -> None:
    store = Outage(subject.store)
    async with following(store) as followed:
        await followed.reached(await put(subject, "a"))
        await store.go_away()
        await put(subject, "b")
        await eventually_async(lambda: followed.stale_since is not None)
        await subject.store.compact()
        revision = await put(subject, "c")
        await store.come_back()
        await followed.reached(revision)
        assert names(followed.state) == ["a", "b", "c"]


async def test_what_cannot_be_read_is_left_out_and_said_and_the_rest_is_served(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    newer = api_pb2.Resource()
    newer.metadata.name = "x"  # its spec is a field that this release does not know
    await subject.store.txn(
        (), [Put(keys.resource("Mirror", "shop", "x"), newer.SerializeToString() + b"\xfa\x3f\x00")]
    )
    async with following(Outage(subject.store)) as followed:
        await followed.reached(await put(subject, "a"))
        bad = [Put(keys.resource("Service", "shop", "bad"), b"\xff"), Put(keys.instance("shop", "w", "1"), b"\xff")]
        await subject.store.txn((), bad)
        await followed.reached(await put(subject, "b"))
        assert names(followed.state) == ["a", "b"]
        assert (len(followed.state.resources), followed.state.instances) == (2, {})
        # What was good and is overwritten with nonsense is not served on.
        await subject.store.txn((), [Put(state.key_of(service("a")), b"\xff")])
        await eventually_async(lambda: names(followed.state) == ["b"])
    assert (
        "what is stored as /remora/v1/resources/Mirror/shop/x is of a kind that this release does not know"
        in caplog.text
    )
    assert "what is stored as /remora/v1/instances/shop/w/1 is no instance" in caplog.text


async def test_keys_of_others_are_left_alone(subject: Subject) -> None:
    async with following(Outage(subject.store)) as followed:
        await followed.is_loaded.wait()
        await subject.store.txn((), [Put(b"/remora/v1/elections/x", b"y"), Put(b"/other", b"z")])
        await followed.reached(await put(subject, "a"))
        assert (len(followed.state.resources), len(followed.state.instances)) == (1, 0)


def test_names_that_run_without_being_declared_are_services_too() -> None:
    seen = State(
        1,
        {state.key_of(service("a")): service("a")},
        {b"1": instance("w1"), b"2": service_pb2.Instance(id="o", service="other", namespace="office")},
    )
    assert seen.service_names() == [("office", "other"), ("shop", "a"), ("shop", "warehouse")]


_VALUES = [state.stored(service("a")), state.stored(service("b")), instance().SerializeToString(), b"\xff", None]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"resources/Service/shop/a", b"resources/x", b"instances/a", b"z"]),
            st.sampled_from(_VALUES),
        )
    )
)
def test_a_state_that_took_every_event_is_the_state_of_the_whole_listing(
    changes: list[tuple[bytes, bytes | None]],
) -> None:
    advanced, items = State(), dict[bytes, KeyValue]()
    for number, (name, value) in enumerate(changes, 1):
        key = keys.ROOT + name
        kind = EventType.DELETE if value is None else EventType.PUT
        advanced = state.advance(advanced, [Event(kind, key, value or b"", number)])
        items.pop(key, None)
        if value is not None:
            items[key] = KeyValue(key, value, number, number)
    listed = [
        [item for item in items.values() if item.key.startswith(prefix)] for prefix in (keys.RESOURCES, keys.INSTANCES)
    ]
    assert advanced == state.load(listed[0], listed[1], len(changes))
