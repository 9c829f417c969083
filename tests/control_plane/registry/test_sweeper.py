"""How much history is kept: by examples and by properties of the pure part, and on a real store with an owner's token."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.registry import keys
from control_plane.registry.mirror import Mirror
from control_plane.registry.presence import Presence
from control_plane.registry.sweeper import MAX_MARKS, Mark, Retention, Sweeper, due, marked
from control_plane.store.contract import Compacted, Delete, Put
from control_plane.store.election import Deposed, Term
from tests.control_plane.registry.subject import Clock, Subject, opened
from tests.control_plane.registry.test_presence import caught_up, mirror_of, register, seen
from tests.waiting import eventually_async

HOUR = Retention(age_s=3600.0, revisions=1000)


def test_what_is_younger_than_the_time_is_kept() -> None:
    marks = [Mark(0.0, 10), Mark(1000.0, 20), Mark(3000.0, 30)]
    assert [due(marks, now, HOUR) for now in (3000.0, 3599.0, 3600.0, 4599.0, 4600.0, 9999.0)] == [0, 0, 10, 10, 20, 30]


def test_more_changes_than_the_limit_are_never_kept() -> None:
    assert due([Mark(0.0, 10), Mark(1.0, 5000)], 2.0, HOUR) == 4000
    assert due([], 0.0, HOUR) == 0


@given(st.lists(st.tuples(st.floats(-5000.0, 5000.0), st.integers(1, 500)), max_size=120))
def test_whatever_the_clock_does_marks_rise_are_few_and_say_nothing_that_was_not(
    steps: list[tuple[float, int]],
) -> None:
    """Clocks jump. What is due is then too much or too little history, never a revision that is yet to come."""
    marks: tuple[Mark, ...] = ()
    now, revision = 1e6, 0
    for passed, changes in steps:
        now, revision = now + passed, revision + changes
        marks = marked(marks, now, revision, HOUR)
        assert len(marks) <= MAX_MARKS
        assert [mark.revision for mark in marks] == sorted({mark.revision for mark in marks})
        assert all(mark.at <= now for mark in marks) and marks[-1] == Mark(now, revision)
        assert 0 <= due(marks, now, HOUR) < revision + 1


@given(st.integers(60, 600), st.integers(1, 50))
def test_with_a_steady_clock_the_past_hour_is_kept_and_little_more(every_s: int, changes: int) -> None:
    marks: tuple[Mark, ...] = ()
    at: dict[int, float] = {}
    for number in range(1, 200):
        now, revision = float(number * every_s), number * changes
        at[revision] = now
        marks = marked(marks, now, revision, Retention(age_s=3600.0, revisions=10**9))
        forgotten = due(marks, now, Retention(age_s=3600.0, revisions=10**9))
        if forgotten:
            assert now - at[forgotten] >= 3600.0
        if now > 3600.0 * 1.3 + every_s:
            assert forgotten and now - at[forgotten] <= 3600.0 * 1.3 + every_s


async def owner(subject: Subject) -> Term:
    return Term(keys.OWNER, (await subject.store.txn((), [Put(keys.OWNER, b"us")])).revision)


def sweeper_of(subject: Subject, clock: Clock, mirror: Mirror | None = None) -> Sweeper:
    mirror = mirror or Mirror(subject.store, presence=Presence(clock=clock))
    return Sweeper(subject.store, mirror, subject.registry, HOUR, clock)


async def is_kept(subject: Subject, revision: int) -> bool:
    watch = subject.store.watch(b"", revision)
    try:
        async with asyncio.timeout(5):
            await anext(watch)
        return True
    except Compacted:
        return False
    finally:
        await watch.aclose()


async def test_history_is_forgotten_after_its_time_by_the_next_owner_too(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject:
        first = (await subject.store.txn((), [Put(b"a", b"")])).revision
        await sweeper_of(subject, clock).sweep(await owner(subject))
        clock.now += 1800
        second = (await subject.store.txn((), [Put(b"a", b"")])).revision
        await sweeper_of(subject, clock).sweep(await owner(subject))
        clock.now += 1801
        last = (await subject.store.txn((), [Put(b"a", b"")])).revision
        sweeper = sweeper_of(subject, clock)  # knows nothing but what stands in the store
        await sweeper.sweep(await owner(subject))
        assert [await is_kept(subject, revision) for revision in (first, second, last)] == [False, True, True]
        assert sweeper.compactions == 1 and sweeper.compacted >= first


async def test_a_mesh_in_which_nothing_happens_is_not_written_to(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject:
        term, sweeper = await owner(subject), sweeper_of(subject, clock)
        await sweeper.sweep(term)
        before = (await subject.store.range(b"")).revision
        for _ in range(5):
            clock.now += 60
            await sweeper.sweep(term)
        assert (await subject.store.range(b"")).revision == before


async def test_who_is_not_the_owner_any_more_forgets_nothing(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        await register(subject, "cart/a", "cart/b", "cart/c", "cart/dies")
        old, sweeper = await owner(subject), sweeper_of(subject, clock, mirror)
        await sweeper.sweep(old)
        first = (await subject.store.txn((), [Delete(keys.OWNER)])).revision
        await owner(subject)
        await subject.pass_time(6)
        await register(subject, "cart/a", "cart/b", "cart/c")
        await subject.pass_time(6)
        await caught_up(mirror, subject)
        clock.now += 4000
        with pytest.raises(Deposed):
            await sweeper.sweep(old)
        assert await is_kept(subject, first)
        assert await subject.store.get(keys.roster("shop", "cart", "dies")) is not None


async def test_marks_that_cannot_be_read_are_begun_anew(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject:
        await subject.store.txn((), [Put(keys.MARKS, b"[[1], 2]")])
        await subject.store.txn((), [Put(b"a", b"")])
        await sweeper_of(subject, clock).sweep(await owner(subject))
        clock.now += 4000
        sweeper = sweeper_of(subject, clock)
        await sweeper.sweep(await owner(subject))
        assert sweeper.compactions == 1


async def test_who_vanished_alone_is_forgotten_soon(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        term, sweeper = await owner(subject), sweeper_of(subject, clock, mirror)
        await register(subject, "cart/a", "cart/b", "cart/c", "cart/dies")
        await subject.pass_time(6)
        await register(subject, "cart/a", "cart/b", "cart/c")
        await subject.pass_time(6)
        await caught_up(mirror, subject)
        line = keys.roster("shop", "cart", "dies")
        await sweeper.sweep(term)
        assert await subject.store.get(line) is not None, "a wave may still come"
        clock.now += 31
        await sweeper.sweep(term)
        assert await subject.store.get(line) is None
        assert await subject.store.get(keys.roster("shop", "cart", "a")) is not None


async def test_who_is_held_is_let_go_after_an_hour(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        term, sweeper = await owner(subject), sweeper_of(subject, clock, mirror)
        await register(subject, "cart/a", "cart/b")
        await subject.pass_time(11)
        await caught_up(mirror, subject)
        clock.now += 3599
        await sweeper.sweep(term)
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "HELD", "b": "HELD"}
        clock.now += 1
        await sweeper.sweep(term)
        await caught_up(mirror, subject)
        assert seen(mirror) == {} and sweeper.forgotten == 2
        assert "2 instances have been held for 3600 s" in caplog.text


async def test_the_word_that_somebody_is_drained_outlives_him_for_an_hour(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        term, sweeper = await owner(subject), sweeper_of(subject, clock, mirror)
        await register(subject, "cart/a", "cart/b")
        await subject.registry.drain("shop", "cart", "a", True)
        await subject.pass_time(11)
        await caught_up(mirror, subject)
        for seconds in (60, 3000):
            await sweeper.sweep(term)
            clock.now += seconds
        await register(subject, "cart/a")
        await caught_up(mirror, subject)
        assert seen(mirror)["a"] == "DRAINING"
        await subject.pass_time(11)
        await caught_up(mirror, subject)
        await sweeper.sweep(term)
        clock.now += 3601
        await sweeper.sweep(term)
        assert await subject.store.get(keys.drained("shop", "cart", "a")) is None


async def test_a_store_that_is_away_is_swept_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject:
        often = Retention(every_s=0.001)
        mirror = Mirror(subject.store, presence=Presence(clock=clock))
        sweeper, term = Sweeper(subject.store, mirror, subject.registry, often, clock), await owner(subject)
        await subject.store.close()
        task = asyncio.create_task(sweeper.run(term))
        await eventually_async(lambda: caplog.text.count("is not swept now") > 1)
        assert not task.done()
        task.cancel()
