"""What one replica does for all: it forgets instances that vanished, and keeps the store's history within bounds.

The store keeps every change until it is told to forget. How long is said in time and in changes (`Retention`). When which revision was
current is written into the store, so that the next owner goes on where the last one stopped, and so that one who is not the owner any
more cannot have it compacted: the mark is written under the owner's fencing token before.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import time
from typing import Final

from control_plane.registry import keys
from control_plane.registry.mirror import Mirror
from control_plane.registry.registry import Registry
from control_plane.store.contract import Compare, Put, Store, StoreError
from control_plane.store.election import Term

log = logging.getLogger("remora.registry")

MAX_MARKS: Final = 64
FIRST_S: Final = 5.0
"""Who has just become the owner may have just started, and has other things to do."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much history the store keeps, for watches that fell behind."""

    age_s: float = 3600.0
    """A change is kept at least so long…"""
    revisions: int = 100_000
    """… but never more changes than that."""
    every_s: float = 60.0
    """How often is looked."""
    vanished_s: float = 3600.0
    """Who is held, or drained and not there, is forgotten after so long."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A revision, and when it was the present one (Unix seconds)."""

    at: float
    revision: int


def marked(marks: Sequence[Mark], now: float, revision: int, retention: Retention) -> tuple[Mark, ...]:
    """The marks with one for now; those that lie in the future, because a clock was put back, count as of now."""
    known = [Mark(min(mark.at, now), mark.revision) for mark in marks if mark.revision < revision]
    spaced: list[Mark] = []
    for mark in known:
        if not spaced or mark.at - spaced[-1].at >= retention.age_s / (MAX_MARKS / 2):
            spaced.append(mark)
    return (*spaced[-MAX_MARKS + 1 :], Mark(now, revision))


def due(marks: Sequence[Mark], now: float, retention: Retention) -> int:
    """The revision up to which history may be forgotten; 0 for nothing."""
    if not marks:
        return 0
    old = [mark.revision for mark in marks if now - mark.at >= retention.age_s]
    return max([*old, marks[-1].revision - retention.revisions, 0])


class Sweeper:
    """Sweeps while a term lasts."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        registry: Registry,
        retention: Retention | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._registry = registry
        self._retention = retention or Retention()
        self._clock = clock
        self.compacted = 0
        """The last revision that was forgotten by our doing."""
        self.compactions = 0
        self.forgotten = 0
        """Instances that vanished and were taken off the roster."""
        self._absent_since: dict[bytes, float] = {}

    async def run(self, term: Term) -> None:
        """Sweep for ever. Raises Deposed."""
        await asyncio.sleep(min(FIRST_S, self._retention.every_s))
        while True:
            try:
                await self.sweep(term)
            except StoreError as error:
                log.warning("the store is not swept now: %s", error)
            await asyncio.sleep(self._retention.every_s)

    async def sweep(self, term: Term) -> None:
        """One look. Raises Deposed, StoreError."""
        await self._forget_vanished(term)
        await self._forget_history(term)

    async def _forget_vanished(self, term: Term) -> None:
        presence, keep_s = self._mirror.presence, self._retention.vanished_s
        now = presence.clock()
        late = {key for key, since in presence.waves.held.items() if now - since >= keep_s}
        absent = presence.drained_and_gone(self._mirror.state.instances)
        self._absent_since = {key: self._absent_since.get(key, now) for key in absent}
        unused = {key for key, since in self._absent_since.items() if now - since >= keep_s}
        if late:
            log.error("%d instances have been held for %g s and have not come back: they are let go", len(late), keep_s)
        vanished = sorted(presence.waves.gone(now) | late | unused)
        if vanished:
            self.forgotten += await self._registry.release(vanished, [term.guard])
            await term.check(self._store)

    async def _forget_history(self, term: Term) -> None:
        listing = await self._store.range(keys.MARKS)
        item = next((each for each in listing.items if each.key == keys.MARKS), None)
        marks = _read(item.value) if item is not None else ()
        now = self._clock()
        if item is None or listing.revision > item.mod_revision:  # else only our own mark is new
            marks = marked(marks, now, listing.revision, self._retention)
            put = Put(keys.MARKS, json.dumps([[mark.at, mark.revision] for mark in marks]).encode())
            result = await term.txn(self._store, [Compare(keys.MARKS, item.mod_revision if item else 0)], [put])
            if not result.succeeded:
                return  # another owner's, whose term has ended meanwhile: look again next time
        else:
            await term.check(self._store)
        revision = due(marks, now, self._retention)
        if revision > self.compacted:
            await self._store.compact(revision)
            self.compacted, self.compactions = revision, self.compactions + 1
            log.info("history up to revision %d is forgotten", revision)


def _read(value: bytes) -> tuple[Mark, ...]:
    try:
        return tuple(Mark(float(at), int(revision)) for at, revision in json.loads(value))
    except (ValueError, TypeError):
        log.error("the marks of the store's history cannot be read; beginning anew")
        return ()
