"""A registry on a real store whose clock the test moves, and what can go wrong between the two."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from control_plane.registry.registry import Registry
from control_plane.store.contract import (
    Compare,
    Delete,
    Event,
    KeyValue,
    Listing,
    Put,
    Store,
    StoreUnavailable,
    TxnResult,
)
from control_plane.store.embedded import EmbeddedStore
from proto.mesh.v1 import service_pb2


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Subject:
    """A registry, its store and the store's clock."""

    def __init__(self, store: EmbeddedStore, clock: Clock) -> None:
        self.store = store
        self.registry = Registry(store)
        self._clock = clock

    async def pass_time(self, seconds: float) -> None:
        """Move the clock, and let the leases end whose time is over."""
        self._clock.now += seconds
        await self.store.expire_due()

    async def there(self) -> dict[str, service_pb2.Instance]:
        """All instances, by id."""
        listing = await self.store.range(b"/remora/v1/instances/")
        found = [service_pb2.Instance.FromString(item.value) for item in listing.items]
        return {instance.id: instance for instance in found}


@asynccontextmanager
async def opened(directory: Path, clock: Clock | None = None) -> AsyncIterator[Subject]:
    """Open (again) what is in a directory."""
    clock = clock or Clock()
    store = await EmbeddedStore.open(directory, clock)
    try:
        yield Subject(store, clock)
    finally:
        await store.close()


class Outage:
    """A store in between, that is away when it is told to be. Watches that run then end with the same error."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_away = False
        self.before_txn: Callable[[], Awaitable[object]] | None = None
        """Done once, before the next transaction: somebody else gets there first."""
        self.reads = 0

    async def go_away(self) -> None:
        """From now on nothing works, and running watches break at their next event."""
        self._is_away = True

    async def breaks_watches(self) -> None:
        """Let running watches notice now, by an event that concerns nobody."""
        await self._store.txn((), [Put(b"/remora/v1/noise", b"")])

    async def come_back(self) -> None:
        self._is_away = False

    def _check(self) -> None:
        if self._is_away:
            raise StoreUnavailable("store 127.0.0.1:2379 cannot be reached")

    async def get(self, key: bytes) -> KeyValue | None:
        self._check()
        return await self._store.get(key)

    async def range(self, prefix: bytes) -> Listing:
        self.reads += 1
        self._check()
        return await self._store.range(prefix)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._check()
        meanwhile, self.before_txn = self.before_txn, None
        if meanwhile is not None:
            await meanwhile()
        return await self._store.txn(compares, ops)

    async def grant(self, ttl_s: int) -> int:
        self._check()
        return await self._store.grant(ttl_s)

    async def keep_alive(self, lease: int) -> int:
        self._check()
        return await self._store.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        self._check()
        await self._store.revoke(lease)

    async def watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        self._check()
        async for batch in self._store.watch(prefix, start_revision):
            self._check()
            yield batch

    async def compact(self, revision: int | None = None) -> None:
        self._check()
        await self._store.compact(revision)

    async def close(self) -> None:
        await self._store.close()
