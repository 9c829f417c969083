"""A store under test, and what a test may do to it from outside; readers of watches."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final, Protocol

from control_plane.store.contract import Event, Put, Store
from control_plane.store.embedded import EmbeddedStore
from control_plane.store.etcd import EtcdStore
from tests.etcd import EtcdCluster

TAKE_S: Final = 10.0
"""How long to wait for events that must come."""


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Subject(Protocol):
    """Either store."""

    @property
    def store(self) -> EmbeddedStore | EtcdStore: ...

    async def open(self) -> None:
        """Open; or close and open again."""
        ...

    async def close(self) -> None: ...

    async def tick(self) -> None:
        """Called while a test waits for time to pass: moves the embedded store's clock; etcd's runs by itself."""
        ...


class EmbeddedSubject:
    """The embedded store, with a clock that the test moves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self._store: EmbeddedStore | None = None

    @property
    def store(self) -> EmbeddedStore:
        assert self._store is not None
        return self._store

    async def open(self) -> None:
        await self.close()
        self._store = await EmbeddedStore.open(self.directory, self.clock)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    async def pass_time(self, seconds: float) -> None:
        """As if so many seconds had gone by."""
        self.clock.now += seconds
        await self.store.expire_due()

    async def tick(self) -> None:
        await self.pass_time(1.0)


class EtcdSubject:
    """A store on a real etcd; time passes by itself."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self.cluster = cluster
        self._store: EtcdStore | None = None

    @property
    def store(self) -> EtcdStore:
        assert self._store is not None
        return self._store

    async def open(self) -> None:
        await self.close()
        self._store = await EtcdStore.open(self.cluster.target)

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    async def tick(self) -> None:
        return


async def put(store: Store, key: bytes, value: bytes = b"", lease: int = 0) -> int:
    """Write one key; the revision."""
    return (await store.txn((), [Put(key, value, lease)])).revision


async def take(batches: AsyncGenerator[tuple[Event, ...], None], count: int) -> list[Event]:
    """At least so many events from a watch."""
    events: list[Event] = []
    async with asyncio.timeout(TAKE_S):
        while len(events) < count:
            events.extend(await anext(batches))
    return events
