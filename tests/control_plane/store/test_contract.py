"""What `contract` promises, sentence by sentence, on both stores."""

import asyncio
from contextlib import aclosing
from itertools import groupby

import pytest

from control_plane.store import contract
from control_plane.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    EventType,
    KeyValue,
    LeaseNotFound,
    Put,
    Store,
    StoreUnavailable,
    TxnResult,
)
from control_plane.store.embedded import EmbeddedStore
from control_plane.store.etcd import EtcdStore
from tests.control_plane.store.subject import EtcdSubject, Subject, put, take
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

AnyStore = EmbeddedStore | EtcdStore

# -- get and range ----------------------------------------------------------------------------------


async def test_what_was_put_is_read_with_its_place_in_history(store: AnyStore) -> None:
    first = await put(store, b"a", b"1")
    second = await put(store, b"a", b"2")
    assert second == first + 1
    assert await store.get(b"a") == KeyValue(b"a", b"2", first, second)


async def test_what_is_not_there_is_none(store: AnyStore) -> None:
    await put(store, b"aa")
    assert await store.get(b"a") is None
    assert await store.get(b"") is None


async def test_a_key_that_was_deleted_is_gone_and_begins_anew(store: AnyStore) -> None:
    await put(store, b"a", b"1")
    await store.txn((), [Delete(b"a")])
    assert await store.get(b"a") is None
    again = await put(store, b"a", b"2")
    assert await store.get(b"a") == KeyValue(b"a", b"2", again, again)


async def test_keys_and_values_are_bytes(store: AnyStore) -> None:
    key, value = bytes(range(256)), bytes(range(255, -1, -1)) * 4
    await put(store, key, value)
    found = await store.get(key)
    assert found is not None and (found.key, found.value) == (key, value)


async def test_a_range_has_all_keys_of_a_prefix_in_their_order_and_no_others(store: AnyStore) -> None:
    keys = [b"a", b"a/", b"a/b", b"a/\x00", b"a/\xff", b"a/\xff\xff/c", b"a0", b"b", b"\xff", b"\xff\xff", b"\xfe"]
    for key in keys:
        await put(store, key, key)
    for prefix in [b"", b"a", b"a/", b"a/\xff", b"\xff", b"\xff\xff", b"c", b"a/b/"]:
        listing = await store.range(prefix)
        assert [item.key for item in listing.items] == sorted(key for key in keys if key.startswith(prefix)), prefix
        assert all(item.value == item.key for item in listing.items)


async def test_a_range_tells_the_stores_revision_also_when_it_is_empty(store: AnyStore) -> None:
    revision = await put(store, b"elsewhere")
    assert (await store.range(b"nothing/")) == contract.Listing((), revision)


async def test_a_range_may_be_larger_than_a_message(store: AnyStore) -> None:
    big = b"x" * 900_000
    for number in range(6):
        await put(store, b"big/%d" % number, big)
    listing = await store.range(b"big/")
    assert [len(item.value) for item in listing.items] == [len(big)] * 6


async def test_a_long_range_is_of_one_revision_while_others_write(store: AnyStore) -> None:
    """Every transaction puts the same value at both ends of the range, so a reading of two revisions shows."""
    for start in range(0, 2000, 100):
        await store.txn((), [Put(b"k/%04d" % number, b"0") for number in range(start, start + 100)])

    async def write() -> None:
        for number in range(1, 60):
            await store.txn((), [Put(b"k/0000", b"%d" % number), Put(b"k/1999", b"%d" % number)])

    writing = asyncio.create_task(write())
    while not writing.done():
        listing = await store.range(b"k/")
        assert len(listing.items) == 2000
        assert listing.items[0].value == listing.items[-1].value
        assert max(item.mod_revision for item in listing.items) <= listing.revision
        await asyncio.sleep(0)
    await writing


# -- transactions -----------------------------------------------------------------------------------


async def test_all_operations_of_a_transaction_are_of_one_new_revision(store: AnyStore) -> None:
    before = await put(store, b"c")
    result = await store.txn((), [Put(b"a", b"1"), Put(b"b", b"2"), Delete(b"c")])
    assert result == TxnResult(True, before + 1)
    items = (await store.range(b"")).items
    assert [(item.key, item.mod_revision) for item in items] == [(b"a", before + 1), (b"b", before + 1)]


async def test_a_transaction_is_done_if_all_comparisons_hold(store: AnyStore) -> None:
    revision = await put(store, b"a", b"1")
    result = await store.txn([Compare(b"a", revision), Compare(b"new", 0)], [Put(b"a", b"2"), Put(b"new", b"3")])
    assert result == TxnResult(True, revision + 1)


@pytest.mark.parametrize("compare", ["older", "absent", "present"])
async def test_a_transaction_does_nothing_if_one_comparison_fails(store: AnyStore, compare: str) -> None:
    old = await put(store, b"a", b"1")
    revision = await put(store, b"a", b"2")
    wrong = {"older": Compare(b"a", old), "absent": Compare(b"a", 0), "present": Compare(b"b", revision)}[compare]
    result = await store.txn([Compare(b"a", revision), wrong], [Put(b"a", b"3"), Put(b"c", b"4")])
    assert result == TxnResult(False, revision)
    assert await store.get(b"a") == KeyValue(b"a", b"2", old, revision)
    assert await store.get(b"c") is None
    assert (await store.range(b"")).revision == revision


async def test_a_key_may_be_compared_and_not_written_and_a_deleted_one_compares_as_absent(store: AnyStore) -> None:
    await put(store, b"a")
    await store.txn((), [Delete(b"a")])
    assert (await store.txn([Compare(b"a", 0)], [Put(b"b", b"")])).succeeded


async def test_deleting_what_is_not_there_is_no_error_and_no_change(store: AnyStore) -> None:
    revision = await put(store, b"a")
    assert await store.txn((), [Delete(b"b")]) == TxnResult(True, revision)
    assert await store.txn((), ()) == TxnResult(True, revision)
    assert await store.txn((), [Delete(b"b"), Put(b"c", b"")]) == TxnResult(True, revision + 1)
    async with aclosing(store.watch(b"", revision + 1)) as events:
        assert await take(events, 1) == [Event(EventType.PUT, b"c", b"", revision + 1)]


async def test_putting_the_same_value_again_is_a_change(store: AnyStore) -> None:
    revision = await put(store, b"a", b"1")
    assert await put(store, b"a", b"1") == revision + 1


async def test_of_many_that_compare_and_set_at_once_exactly_one_gets_through_each_time(store: AnyStore) -> None:
    """Thirty counters in a race: a lost update would make the sum too small."""
    await put(store, b"n", b"0")

    async def count() -> None:
        while True:
            found = await store.get(b"n")
            assert found is not None
            fresh = b"%d" % (int(found.value) + 1)
            if (await store.txn([Compare(b"n", found.mod_revision)], [Put(b"n", fresh)])).succeeded:
                return

    before = (await store.range(b"n")).revision
    await asyncio.gather(*(count() for _ in range(30)))
    found = await store.get(b"n")
    assert found is not None and found.value == b"30"
    assert found.mod_revision == before + 30


async def test_each_of_many_writes_at_once_has_a_revision_of_its_own(store: AnyStore) -> None:
    before = (await store.range(b"")).revision
    revisions = await asyncio.gather(*(put(store, b"w/%d" % number) for number in range(200)))
    assert sorted(revisions) == list(range(before + 1, before + 201))
    items = (await store.range(b"w/")).items
    assert {item.key: item.mod_revision for item in items} == {b"w/%d" % n: rev for n, rev in enumerate(revisions)}


async def test_a_callers_list_may_change_after_the_call_has_begun(store: AnyStore) -> None:
    ops: list[Put | Delete] = [Put(b"a", b"1")]
    writing = asyncio.ensure_future(store.txn((), ops))
    await asyncio.sleep(0)
    ops.append(Put(b"b", b"2"))
    await writing
    assert [item.key for item in (await store.range(b"")).items] == [b"a"]


FITS = contract.MAX_TXN_BYTES // 2 - 1


@pytest.mark.parametrize(
    ("compares", "ops"),
    [
        ([], [Put(b"%d" % n, b"") for n in range(contract.MAX_TXN_OPS + 1)]),
        ([Compare(b"%d" % n, 0) for n in range(contract.MAX_TXN_OPS + 1)], [Put(b"a", b"")]),
        ([], [Put(b"", b"")]),
        ([], [Delete(b"")]),
        ([Compare(b"", 0)], [Put(b"a", b"")]),
        ([], [Put(b"k" * (contract.MAX_KEY_BYTES + 1), b"")]),
        ([Compare(b"k" * (contract.MAX_KEY_BYTES + 1), 0)], [Put(b"a", b"")]),
        ([], [Put(b"a", b"v" * (contract.MAX_VALUE_BYTES + 1))]),
        ([], [Put(b"a", b"v" * FITS), Put(b"b", b"v" * (FITS + 1))]),
        ([], [Put(b"a", b"1"), Put(b"a", b"2")]),
        ([], [Put(b"a", b"1"), Delete(b"a")]),
    ],
    ids=[
        "operations", "comparisons", "empty key", "empty key to delete", "empty key to compare", "long key",
        "long key to compare", "long value", "long in all", "one key put twice", "one key put and deleted",
    ],
)  # fmt: skip
async def test_a_transaction_over_a_limit_is_refused(
    store: AnyStore, compares: list[Compare], ops: list[Put | Delete]
) -> None:
    before = (await store.range(b"")).revision
    with pytest.raises(ValueError, match=r"at most|to 1024|one key"):
        await store.txn(compares, ops)
    assert await store.range(b"") == contract.Listing((), before)


async def test_a_transaction_at_the_limits_is_done(store: AnyStore) -> None:
    pad = b"k" * (contract.MAX_KEY_BYTES - 4)
    keys = [b"%04d" % number + pad for number in range(contract.MAX_TXN_OPS)]
    room = contract.MAX_TXN_BYTES - 2 * contract.MAX_TXN_OPS * contract.MAX_KEY_BYTES
    values = [b"v" * contract.MAX_VALUE_BYTES, b"v" * (room - contract.MAX_VALUE_BYTES)]
    values += [b""] * (len(keys) - len(values))
    compares = [Compare(key, 0) for key in keys]
    result = await store.txn(compares, [Put(key, value) for key, value in zip(keys, values, strict=True)])
    assert result.succeeded
    assert [item.value for item in (await store.range(b"")).items] == values


# -- leases -----------------------------------------------------------------------------------------


async def test_a_lease_that_is_not_kept_alive_ends_with_its_keys_and_their_events(subject: Subject) -> None:
    store = subject.store
    ended, kept = await store.grant(contract.MIN_LEASE_TTL_S), await store.grant(contract.MIN_LEASE_TTL_S)
    assert ended != kept
    await put(store, b"ended/1", b"v", ended)
    await put(store, b"ended/2", b"v", ended)
    await put(store, b"moved", b"v", ended)
    await put(store, b"freed", b"v", ended)
    await put(store, b"kept", b"v", kept)
    await put(store, b"moved", b"v", kept)
    revision = await put(store, b"freed", b"v")

    async def has_ended() -> bool:
        await subject.tick()
        assert await store.keep_alive(kept) == contract.MIN_LEASE_TTL_S
        return await store.get(b"ended/1") is None and await store.get(b"ended/2") is None

    async with aclosing(store.watch(b"", revision + 1)) as events:
        await eventually_async(has_ended, timeout_s=20)
        deletions = await take(events, 2)
    assert {(event.type, event.key, event.value) for event in deletions} == {
        (EventType.DELETE, b"ended/1", b""),
        (EventType.DELETE, b"ended/2", b""),
    }
    assert [item.key for item in (await store.range(b"")).items] == [b"freed", b"kept", b"moved"]
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(ended)
    with pytest.raises(LeaseNotFound):
        await put(store, b"late", b"", ended)


async def test_a_key_tells_its_lease_and_so_does_its_event(store: AnyStore) -> None:
    lease = await store.grant(60)
    revision = await put(store, b"a", b"1", lease)
    found = await store.get(b"a")
    assert found is not None and found.lease == lease
    await put(store, b"a", b"2")
    async with aclosing(store.watch(b"a", revision)) as events:
        assert [event.lease for event in await take(events, 2)] == [lease, 0]


async def test_revoking_deletes_the_keys_at_once_and_twice_is_no_error(store: AnyStore) -> None:
    lease, other = await store.grant(60), await store.grant(60)
    await put(store, b"a", b"", lease)
    await put(store, b"b", b"", lease)
    revision = await put(store, b"b", b"", other)
    await store.revoke(lease)
    assert [item.key for item in (await store.range(b"")).items] == [b"b"]
    async with aclosing(store.watch(b"", revision + 1)) as events:
        assert await take(events, 1) == [Event(EventType.DELETE, b"a", b"", revision + 1)]
    await store.revoke(lease)
    await store.revoke(0)
    await store.revoke(2**80)
    assert (await store.range(b"")).revision == revision + 1


async def test_revoking_a_lease_without_keys_changes_nothing(store: AnyStore) -> None:
    revision = await put(store, b"a")
    await store.revoke(await store.grant(60))
    assert (await store.range(b"")).revision == revision


async def test_a_lease_may_hold_more_keys_than_a_transaction_takes(store: AnyStore) -> None:
    lease = await store.grant(60)
    keys = [b"k/%03d" % number for number in range(3 * contract.MAX_TXN_OPS)]
    for start in range(0, len(keys), contract.MAX_TXN_OPS):
        await store.txn((), [Put(key, b"", lease) for key in keys[start : start + contract.MAX_TXN_OPS]])
    revision = (await store.range(b"")).revision
    await store.revoke(lease)
    assert (await store.range(b"")).items == ()
    async with aclosing(store.watch(b"", revision + 1)) as events:
        assert {event.key for event in await take(events, len(keys))} == set(keys)


async def test_a_key_that_moves_to_another_lease_while_the_first_is_revoked_is_not_lost(store: AnyStore) -> None:
    """As when an instance registers again in the moment in which its old lease ends."""
    for _ in range(20):
        old, new = await store.grant(60), await store.grant(60)
        await put(store, b"a", b"old", old)
        await asyncio.gather(put(store, b"a", b"new", new), store.revoke(old))
        found = await store.get(b"a")
        assert found is not None and (found.value, found.lease) == (b"new", new)


@pytest.mark.parametrize("lease", [1234567, -1, 2**63, 2**80])
async def test_a_put_under_an_unknown_lease_is_refused_with_all_that_goes_with_it(store: AnyStore, lease: int) -> None:
    revision = await put(store, b"a", b"1")
    with pytest.raises(LeaseNotFound):
        await store.txn((), [Put(b"b", b""), Put(b"a", b"2", lease)])
    assert [(item.key, item.value) for item in (await store.range(b"")).items] == [(b"a", b"1")]
    assert (await store.range(b"")).revision == revision


async def test_comparisons_come_before_the_lease(store: AnyStore) -> None:
    assert not (await store.txn([Compare(b"a", 5)], [Put(b"a", b"", 1234567)])).succeeded


@pytest.mark.parametrize("lease", [0, 1234567, -1, 2**63, 2**80])
async def test_keeping_alive_what_is_no_lease_is_refused(store: AnyStore, lease: int) -> None:
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease)


async def test_keeping_alive_tells_the_ttl_also_when_many_ask_at_once(store: AnyStore) -> None:
    leases = [await store.grant(10 + number) for number in range(30)]
    assert len(set(leases)) == 30
    assert 0 not in leases
    answers = await asyncio.gather(
        *(store.keep_alive(lease) for lease in leases), store.keep_alive(999), return_exceptions=True
    )
    assert answers[:-1] == [10 + number for number in range(30)]
    assert isinstance(answers[-1], LeaseNotFound)


async def test_a_caller_that_goes_away_does_not_disturb_the_keep_alives_of_others(store: AnyStore) -> None:
    one, two = await store.grant(10), await store.grant(20)
    gone = asyncio.ensure_future(store.keep_alive(one))
    await asyncio.sleep(0)
    gone.cancel()
    assert await store.keep_alive(two) == 20
    assert await store.keep_alive(one) == 10


@pytest.mark.parametrize("ttl_s", [contract.MIN_LEASE_TTL_S - 1, 0, -5, contract.MAX_LEASE_TTL_S + 1, 10**30])
async def test_a_ttl_out_of_bounds_is_refused(store: AnyStore, ttl_s: int) -> None:
    with pytest.raises(ValueError, match="are granted"):
        await store.grant(ttl_s)
    assert await store.keep_alive(await store.grant(contract.MAX_LEASE_TTL_S)) == contract.MAX_LEASE_TTL_S


# -- watches ----------------------------------------------------------------------------------------


async def test_a_watch_gives_what_happens_from_now_on(store: AnyStore) -> None:
    before = (await store.range(b"")).revision
    async with aclosing(store.watch(b"a/", before + 1)) as events:
        reading = asyncio.ensure_future(take(events, 3))
        await asyncio.sleep(0)
        await put(store, b"a/1", b"x")
        await put(store, b"b/1", b"not watched")
        await put(store, b"a/1", b"y")
        await store.txn((), [Delete(b"a/1")])
        assert await reading == [
            Event(EventType.PUT, b"a/1", b"x", before + 1),
            Event(EventType.PUT, b"a/1", b"y", before + 3),
            Event(EventType.DELETE, b"a/1", b"", before + 4),
        ]


async def test_a_watch_gives_history_from_its_revision_on(store: AnyStore) -> None:
    revisions = [await put(store, b"a/%d" % number) for number in range(5)]
    async with aclosing(store.watch(b"a/", revisions[2])) as events:
        assert [event.revision for event in await take(events, 3)] == revisions[2:]
        fresh = await put(store, b"a/9")
        assert [event.revision for event in await take(events, 1)] == [fresh]


async def test_a_watch_may_begin_in_the_future(store: AnyStore) -> None:
    before = await put(store, b"a")
    async with aclosing(store.watch(b"", before + 3)) as events:
        reading = asyncio.ensure_future(take(events, 1))
        for _ in range(3):
            await put(store, b"a")
        assert [event.revision for event in await reading] == [before + 3]


async def test_a_tuple_of_a_watch_holds_whole_revisions(store: AnyStore) -> None:
    before = (await store.range(b"")).revision
    for number in range(20):
        await store.txn((), [Put(b"a/%d" % part, b"%d" % number) for part in range(7)])
    async with aclosing(store.watch(b"a/", before + 1)) as batches:
        seen = 0
        while seen < 140:
            async with asyncio.timeout(10):
                batch = await anext(batches)
            for _, events in groupby(batch, key=lambda event: event.revision):
                assert len(list(events)) == 7
            seen += len(batch)


async def test_revisions_larger_than_an_answer_come_whole(store: AnyStore) -> None:
    """etcd splits an answer over 2 MB into fragments, at any event."""
    before = (await store.range(b"")).revision
    for number in range(6):
        await store.txn((), [Put(b"a/%d" % part, b"%d" % number * 230_000) for part in range(6)])
    async with aclosing(store.watch(b"a/", before + 1)) as batches:
        seen: list[Event] = []
        while len(seen) < 36:
            async with asyncio.timeout(10):
                batch = await anext(batches)
            assert len(batch) % 6 == 0
            seen.extend(batch)
    assert [(event.revision, event.key) for event in seen] == [
        (before + 1 + number, b"a/%d" % part) for number in range(6) for part in range(6)
    ]
    assert all(len(event.value) == 230_000 for event in seen)


async def test_a_long_history_is_given_without_a_gap_and_nothing_twice(store: AnyStore) -> None:
    """etcd hands out history in pieces of a thousand revisions, whose headers are ahead of what they hold."""
    before = (await store.range(b"")).revision
    async with asyncio.TaskGroup() as group:
        for number in range(2500):
            group.create_task(put(store, b"a/%d" % number))
    async with aclosing(store.watch(b"a/", before + 1)) as events:
        writing = asyncio.create_task(put(store, b"a/last"))
        revisions = [event.revision for event in await take(events, 2501)]
        await writing
    assert revisions == list(range(before + 1, before + 2502))


async def test_watches_do_not_disturb_one_another(store: AnyStore) -> None:
    before = (await store.range(b"")).revision
    async with aclosing(store.watch(b"a", before + 1)) as one, aclosing(store.watch(b"", before + 1)) as two:
        await put(store, b"a")
        assert [event.key for event in await take(one, 1)] == [b"a"]
        await one.aclose()
        await put(store, b"b")
        assert [event.key for event in await take(two, 2)] == [b"a", b"b"]


async def test_a_listing_and_the_watch_after_it_miss_nothing(store: AnyStore) -> None:
    async def write() -> None:
        for number in range(150):
            key = b"a/%d" % (number % 7)
            await store.txn((), [Delete(key) if number % 3 == 2 else Put(key, b"%d" % number)])

    writing = asyncio.create_task(write())
    await eventually_async(lambda: _has_keys(store))
    listing = await store.range(b"a/")
    state = {item.key: item.value for item in listing.items}
    await writing
    end = await put(store, b"a/end")
    async with aclosing(store.watch(b"a/", listing.revision + 1)) as events:
        for event in await take(events, end - listing.revision):
            if event.type is EventType.PUT:
                state[event.key] = event.value
            else:
                del state[event.key]
    assert state == {item.key: item.value for item in (await store.range(b"a/")).items}


async def _has_keys(store: Store) -> bool:
    return len((await store.range(b"a/")).items) > 3


async def test_a_watch_that_is_cancelled_while_it_waits_ends_and_leaves_the_store_well(store: AnyStore) -> None:
    before = (await store.range(b"")).revision

    async def follow() -> None:
        async with aclosing(store.watch(b"", before + 1)) as events:
            async for _ in events:
                raise AssertionError("nothing was written")

    following = asyncio.create_task(follow())
    await asyncio.wait({following}, timeout=0.1)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert await put(store, b"a") == before + 1


@pytest.mark.parametrize("revision", [0, -1])
async def test_history_begins_at_1(store: AnyStore, revision: int) -> None:
    with pytest.raises(ValueError, match="history begins at 1"):
        await anext(store.watch(b"", revision))


# -- compaction -------------------------------------------------------------------------------------


async def test_a_watch_from_before_a_compaction_is_told_so(store: AnyStore) -> None:
    first = await put(store, b"a", b"1")
    last = await put(store, b"a", b"2")
    await store.compact()
    for revision in (1, first, last):
        with pytest.raises(Compacted, match="list again") as raised:
            await take(store.watch(b"", revision), 1)
        assert raised.value.revision == last
    await store.compact()
    async with aclosing(store.watch(b"", last + 1)) as events:
        fresh = await put(store, b"a", b"3")
        assert [event.revision for event in await take(events, 1)] == [fresh]
    assert await store.get(b"a") == KeyValue(b"a", b"3", first, fresh)


async def test_history_is_forgotten_up_to_a_revision_and_kept_from_there_on(store: AnyStore) -> None:
    revisions = [await put(store, b"a", b"%d" % number) for number in range(6)]
    for last in (revisions[2], revisions[1]):  # going back brings nothing back, and is no error
        await store.compact(last)
        with pytest.raises(Compacted) as raised:
            await take(store.watch(b"", revisions[2]), 1)
        assert raised.value.revision == revisions[2]
        async with aclosing(store.watch(b"", revisions[3])) as events:
            assert [event.revision for event in await take(events, 3)] == revisions[3:]
    await store.compact(revisions[-1] + 1000)
    async with aclosing(store.watch(b"", revisions[-1] + 1)) as events:
        fresh = await put(store, b"a")
        assert [event.revision for event in await take(events, 1)] == [fresh]


async def test_a_deletion_at_the_revision_of_a_compaction_is_not_missed_silently(store: AnyStore) -> None:
    """etcd 3.4 lets a watch begin there, but the deletion has been removed."""
    await put(store, b"a")
    deletion = (await store.txn((), [Delete(b"a")])).revision
    await store.compact()
    with pytest.raises(Compacted):
        await take(store.watch(b"", deletion), 1)


async def test_a_watch_that_is_up_to_date_does_not_notice_a_compaction(store: AnyStore) -> None:
    before = await put(store, b"a", b"1")
    async with aclosing(store.watch(b"", before)) as events:
        await take(events, 1)
        await store.compact()
        fresh = await put(store, b"a", b"2")
        assert [event.revision for event in await take(events, 1)] == [fresh]


# -- opening and closing ----------------------------------------------------------------------------


async def test_keys_revisions_and_leases_are_there_after_opening_again(subject: Subject) -> None:
    lease = await subject.store.grant(600)
    await put(subject.store, b"a", b"1")
    await put(subject.store, b"a", b"2", lease)
    await subject.store.txn((), [Put(b"b", b"3"), Put(b"c", b"4")])
    await subject.store.txn((), [Delete(b"c")])
    before = await subject.store.range(b"")
    await subject.open()
    assert await subject.store.range(b"") == before
    assert await subject.store.keep_alive(lease) == 600
    assert await put(subject.store, b"d") == before.revision + 1
    assert await subject.store.grant(600) != lease
    await subject.store.revoke(lease)
    assert [item.key for item in (await subject.store.range(b"")).items] == [b"b", b"d"]


async def test_a_closed_store_refuses_everything(subject: Subject) -> None:
    store = subject.store
    lease = await store.grant(60)
    await store.close()
    await store.close()
    calls = [
        store.get(b"a"),
        store.range(b""),
        store.txn((), [Put(b"a", b"")]),
        store.grant(60),
        store.keep_alive(lease),
        store.revoke(lease),
        store.compact(),
        anext(store.watch(b"", 1)),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_watches_end_when_the_store_is_closed(store: AnyStore) -> None:
    before = (await store.range(b"")).revision
    watches = [asyncio.ensure_future(take(store.watch(b"", before + ahead), 1)) for ahead in (1, 5)]
    await asyncio.wait(watches, timeout=0.1)
    await store.close()
    for watch in watches:
        with pytest.raises(StoreUnavailable, match="closed"):
            await watch


async def test_every_call_comes_to_an_end_when_the_store_is_closed_under_it(store: AnyStore) -> None:
    """Done, or StoreUnavailable; none waits for ever, and none is told a cancellation that nobody asked for."""
    lease = await store.grant(60)
    calls = [put(store, b"a/%d" % number) for number in range(50)]
    calls += [store.keep_alive(lease) for _ in range(10)]
    pending = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    await store.close()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*pending, return_exceptions=True)
    assert {type(result) for result in results} <= {int, StoreUnavailable}


async def test_both_ends_of_the_suite_are_what_they_claim_to_be(subject: Subject) -> None:
    """The suite would prove little if both parameters led to the same store."""
    assert isinstance(subject.store, EtcdStore) == isinstance(subject, EtcdSubject)
