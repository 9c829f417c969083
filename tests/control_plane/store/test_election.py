"""One owner at a time, on both stores; and the store itself refuses who only thinks that he is."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from control_plane.store.contract import Compare, Put, Store
from control_plane.store.election import Deposed, Election, Term
from control_plane.store.embedded import EmbeddedStore
from control_plane.store.etcd import EtcdStore
from tests.control_plane.store import candidate
from tests.control_plane.store.subject import EtcdSubject, put
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = b"owner"
TTL_S = 5
"""The shortest that there is."""


class Hanging:
    """A store as a replica sees it whose keep-alives get lost."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def keep_alive(self, lease: int) -> int:
        if self.is_lost:
            await asyncio.Event().wait()
        return await self._store.keep_alive(lease)


@dataclass
class Candidates:
    """Who campaigns, and who owns what since when."""

    store: Any
    terms: list[tuple[str, Term]] = field(default_factory=list)
    owners: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def run(self, name: str, store: Any = None, work: Callable[[Term], Awaitable[None]] | None = None) -> Election:
        election = Election(store or self.store, KEY, name, ttl_s=TTL_S)

        async def own(term: Term) -> None:
            self.terms.append((name, term))
            self.owners.add(name)
            self.told.append(f"{name} begins")
            try:
                await (work(term) if work else asyncio.Event().wait())
            finally:
                self.owners.discard(name)
                self.told.append(f"{name} ends")

        self.tasks[name] = asyncio.create_task(election.run(own))
        return election

    async def stop(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def candidates(store: Any) -> AsyncIterator[Candidates]:
    found = Candidates(store)
    try:
        yield found
    finally:
        for name in list(found.tasks):
            await found.stop(name)


async def test_one_owns_and_the_next_takes_over_as_soon_as_it_steps_down(store: EmbeddedStore | EtcdStore) -> None:
    async with candidates(store) as all_:
        for name in ("a", "b", "c"):
            all_.run(name)
        for count in (1, 2, 3):
            await eventually_async(lambda count=count: len(all_.terms) == count)  # type: ignore[misc]
            assert len(all_.owners) == 1
            await all_.stop(all_.terms[-1][0])
            assert all_.owners == set() or len(all_.terms) > count
    assert sorted(name for name, _ in all_.terms) == ["a", "b", "c"]
    tokens = [term.token for _, term in all_.terms]
    assert tokens == sorted(set(tokens)), "tokens rise"


async def test_what_only_the_owner_may_do_is_done_under_its_token(store: EmbeddedStore | EtcdStore) -> None:
    async with candidates(store) as all_:
        all_.run("a")
        await eventually_async(lambda: all_.terms)
        first = all_.terms[0][1]
        written = await first.txn(store, (), [Put(b"work", b"1")])
        assert written.succeeded
        other = await first.txn(store, [Compare(b"work", 1)], [Put(b"work", b"2")])
        assert not other.succeeded, "another comparison is no deposition"
        await all_.stop("a")
        with pytest.raises(Deposed):
            await first.txn(store, (), [Put(b"work", b"late")])
        all_.run("b")
        await eventually_async(lambda: len(all_.terms) == 2)
        with pytest.raises(Deposed):
            await first.txn(store, (), [Put(b"work", b"late")])
        await all_.terms[1][1].txn(store, (), [Put(b"work", b"3")])
    item = await store.get(b"work")
    assert item is not None and item.value == b"3"


async def test_an_owner_whose_lease_cannot_be_kept_stops_before_another_begins(
    store: EmbeddedStore | EtcdStore,
) -> None:
    hanging = Hanging(store)
    async with candidates(store) as all_:
        election = all_.run("a", hanging)
        await eventually_async(lambda: all_.owners == {"a"})
        all_.run("b")
        hanging.is_lost = True
        await eventually_async(lambda: "b" in all_.owners, timeout_s=TTL_S + 5)
        assert all_.told == ["a begins", "a ends", "b begins"]
        assert election.term is None


async def test_work_that_fails_because_of_the_store_is_begun_again_in_a_new_term(
    store: EmbeddedStore | EtcdStore,
) -> None:
    async def work(term: Term) -> None:
        await store.revoke((await store.get(KEY)).lease)  # type: ignore[union-attr]
        await term.txn(store, (), [Put(b"work", b"")])

    async with candidates(store) as all_:
        all_.run("a", work=work)
        await eventually_async(lambda: len(all_.terms) >= 2)
    assert await store.get(b"work") is None


async def test_an_owner_that_sleeps_through_the_end_of_its_lease_is_refused_when_it_wakes_up(
    etcd_subject: EtcdSubject, tmp_path: Path
) -> None:
    """Two processes. One is stopped in the middle of its work, for longer than its lease; what it writes afterwards is not done."""
    store = etcd_subject.store
    children: dict[str, asyncio.subprocess.Process] = {}

    def lines(name: str) -> list[str]:
        return (tmp_path / name).read_text().splitlines()

    try:
        for name in ("a", "b"):
            with (tmp_path / name).open("wb") as out:
                children[name] = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", candidate.__name__, etcd_subject.cluster.target, name, stdout=out
                )
            await eventually_async(lambda: lines("a"), timeout_s=30)
        children["a"].send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitpid, children["a"].pid, os.WUNTRACED)  # until it has stopped
        await eventually_async(lambda: len(lines("b")) > 3, timeout_s=TTL_S * 3)
        seen = (await store.range(b"work")).revision
        children["a"].send_signal(signal.SIGCONT)
        await eventually_async(lambda: "refused" in lines("a")[-1], message="it was not refused")
        late = [
            item
            for item in (await store.range(b"work")).items
            if item.value.startswith(b"a ") and item.mod_revision > seen
        ]
        assert late == []
        written = len(lines("b"))
        await eventually_async(lambda: len(lines("b")) > written + 3)
    finally:
        for child in children.values():
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def test_the_key_is_the_owners_alone(store: EmbeddedStore | EtcdStore) -> None:
    """Another election whose name begins alike is another election."""
    await put(store, KEY + b"/other", b"somebody")
    async with candidates(store) as all_:
        all_.run("a")
        await eventually_async(lambda: all_.owners == {"a"})
