"""One owner for work that needs one, among any number of replicas.

The owner holds a key under a lease. The revision at which the key came to be is the *fencing token*: every write of the owner's compares it
(`Term.guard`), so whoever thinks that he still is the owner, after a pause or behind a broken network, is refused by the store itself.
The clock here only makes him stop sooner. On the embedded store, which one process has open, the same steps make that process the owner at once.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from random import random
from time import monotonic
from typing import Final

from control_plane.store.contract import (
    Compacted,
    Compare,
    Delete,
    EventType,
    LeaseNotFound,
    Put,
    Store,
    StoreError,
    StoreUnavailable,
    TxnResult,
)

log = logging.getLogger("remora.store")

TTL_S: Final = 10
"""Another takes over so long after an owner has vanished, or somewhat later."""
RESIGN_S: Final = 1.0
"""Who steps down tries so long to say so."""
RETRY_S: Final = 1.0
"""Between tries while the store is away, times 0.5 to 1.5 by chance."""


class Deposed(Exception):
    """The write was refused: somebody else owns the work by now, or nobody."""


@dataclass(frozen=True, slots=True)
class Term:
    """One time of ownership."""

    key: bytes
    token: int
    """Rises from owner to owner."""

    @property
    def guard(self) -> Compare:
        """True as long as the term lasts; for every transaction that only the owner may do."""
        return Compare(self.key, self.token)

    async def txn(self, store: Store, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        """As the store's, done only while the term lasts. Raises Deposed, and what the store raises."""
        result = await store.txn([self.guard, *compares], ops)
        if not result.succeeded:
            await self.check(store)
        return result

    async def check(self, store: Store) -> None:
        """Raises Deposed if the term is over."""
        item = await store.get(self.key)
        if item is None or item.mod_revision != self.token:
            raise Deposed(f"the term of token {self.token} is over")


class Election:
    """Campaigns for one key; `run` does the work in each term that is won."""

    def __init__(
        self, store: Store, key: bytes, candidate: str, *, ttl_s: int = TTL_S, clock: Callable[[], float] = monotonic
    ) -> None:
        self._store = store
        self._key = key
        self._candidate = candidate
        self._ttl_s = ttl_s
        self._clock = clock
        self.term: Term | None = None
        """The present one, if it is ours as far as we know."""
        self.terms = 0
        """Won so far."""

    async def run(self, work: Callable[[Term], Awaitable[None]]) -> None:
        """Campaign for ever; in a term, do the work until the term is over. The work may raise Deposed and StoreError."""
        while True:
            try:
                lease, deadline, term = await self._win()
            except (StoreError, ValueError) as error:
                log.debug("%s: %s", self._name, error)
                await asyncio.sleep(RETRY_S * (0.5 + random()))
                continue
            self.term, self.terms = term, self.terms + 1
            log.info("%s owns %s (token %d)", self._candidate, self._name, term.token)
            try:
                await self._serve(work(term), lease, deadline)
            finally:
                self.term = None
                with suppress(StoreError, TimeoutError):
                    async with asyncio.timeout(RESIGN_S):
                        await self._store.revoke(lease)  # so that nobody has to wait for its end
            log.info("%s does not own %s any more (token %d)", self._candidate, self._name, term.token)
            await asyncio.sleep(RETRY_S * (0.5 + random()))

    @property
    def _name(self) -> str:
        return self._key.decode()

    async def _win(self) -> tuple[int, float, Term]:
        """Wait until there is no owner, and become it. Raises StoreError."""
        while True:
            await self._until_vacant()
            deadline = self._clock() + self._ttl_s
            lease = await self._store.grant(self._ttl_s)
            vote = f"{self._candidate} {secrets.token_hex(8)}".encode()
            try:
                result = await self._store.txn([Compare(self._key, 0)], [Put(self._key, vote, lease)])
            except StoreUnavailable:
                item = await self._store.get(self._key)
                if item is None or item.value != vote:
                    raise
                return lease, deadline, Term(self._key, item.mod_revision)
            if result.succeeded:
                return lease, deadline, Term(self._key, result.revision)
            await self._store.revoke(lease)

    async def _until_vacant(self) -> None:
        while True:
            found = await self._store.range(self._key)
            if all(item.key != self._key for item in found.items):
                return
            with suppress(Compacted):
                async with aclosing(self._store.watch(self._key, found.revision + 1)) as batches:
                    async for batch in batches:
                        if any(event.key == self._key and event.type is EventType.DELETE for event in batch):
                            return

    async def _serve(self, work: Awaitable[None], lease: int, deadline: float) -> None:
        """Work until it ends, or until the lease does."""
        working = asyncio.ensure_future(work)
        keeping = asyncio.create_task(self._keep(lease, deadline))
        try:
            await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (working, keeping):
                task.cancel()
            results = await asyncio.gather(working, keeping, return_exceptions=True)
        for error in results:
            if isinstance(error, Deposed | StoreError):
                log.warning("%s: %s", self._name, error)
            elif isinstance(error, Exception):
                raise error

    async def _keep(self, lease: int, deadline: float) -> None:
        """Keep the lease; returns when it has ended, or may have."""
        while self._clock() < deadline:
            await asyncio.sleep(self._ttl_s / 3 * (0.8 + 0.4 * random()))
            asked_at = self._clock()
            try:
                async with asyncio.timeout(max(0.0, deadline - asked_at)):
                    await self._store.keep_alive(lease)
                deadline = asked_at + self._ttl_s
            except LeaseNotFound:
                return
            except TimeoutError:
                return
            except StoreError:
                continue
