"""The store's content in memory, kept fresh by a watch; while the store is away, the last state is served."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from random import random
from time import monotonic
from typing import Final

from control_plane.registry import keys, state
from control_plane.registry.presence import Presence
from control_plane.registry.state import State
from control_plane.store.contract import Compacted, Store, StoreError

log = logging.getLogger("remora.registry")

FIRST_BACKOFF_S: Final = 0.2
LONGEST_BACKOFF_S: Final = 5.0


class Mirror:
    """Holds `state`; tells `on_change` after each swap, at most once per batch of events."""

    def __init__(self, store: Store, *, has_identities: bool = True, presence: Presence | None = None) -> None:
        """Without `has_identities` the mesh is served as if it had no trust, whatever the store holds of it."""
        self._has_identities = has_identities
        self.state = State()
        self.presence = presence or Presence()
        self._raw = State()
        """As the store has it: without those that are held."""
        self.stale_since: float | None = None
        """Monotonic seconds since when the store cannot be watched; None while it can."""
        self.is_loaded = asyncio.Event()
        self._store = store
        self._listeners: list[Callable[[State], None]] = []
        self._changed = asyncio.Condition()

    @property
    def stale_s(self) -> float:
        """For how long the state may have been out of date; 0 while it is followed."""
        return 0.0 if self.stale_since is None else monotonic() - self.stale_since

    def on_change(self, listener: Callable[[State], None]) -> None:
        """Call `listener` with every new state."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Follow the store for ever. What ends it is a bug: then the state is said to be stale, so that health checks see it."""
        try:
            await self._run()
        finally:
            if self.stale_since is None:
                self.stale_since = monotonic()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._load()
                failures = 0
                await self._follow()
            except Compacted as error:
                log.info("%s", error)
            except StoreError as error:
                if self.stale_since is None:
                    self.stale_since = monotonic()
                    log.warning("serving the last state: %s", error)
                failures += 1
                wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10))
                await asyncio.sleep(wait * (0.5 + random()))

    async def _load(self) -> None:
        listing = await self._store.range(keys.ROOT)
        resources = [item for item in listing.items if item.key.startswith(keys.RESOURCES)]
        instances = [item for item in listing.items if item.key.startswith(keys.INSTANCES)]
        trust = [item for item in listing.items if item.key == keys.TRUST]
        self.stale_since = None
        self._raw = state.load(resources, instances, listing.revision, trust)
        await self._swap(self.presence.load(self._raw, listing.items))
        self.is_loaded.set()

    async def _follow(self) -> None:
        async with aclosing(self._store.watch(keys.ROOT, self.state.revision + 1)) as events:
            async for batch in events:
                self._raw = state.advance(self._raw, batch)
                await self._swap(self.presence.follow(self._raw, batch))

    async def _swap(self, fresh: State) -> None:
        self.state = fresh = fresh if self._has_identities else replace(fresh, trust=None)
        for listener in self._listeners:
            listener(fresh)
        async with self._changed:
            self._changed.notify_all()

    async def reached(self, revision: int) -> None:
        """Return once the state is at least at a revision that changed something."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.state.revision >= revision)
