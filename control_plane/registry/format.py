"""The version of what stands in the store: written into it, brought up step by step, and refused if it is newer than we are.

Each step may run twice, also in two replicas at once: it compares what it changes. The version is raised last. Before the first version
that was written down there was one without: a store that holds something and says nothing is of version 1.

| version | what came |
|---|---|
| 1 | resources and instances |
| 2 | a line on the roster for each instance |
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from control_plane.registry import keys
from control_plane.registry.registry import record
from control_plane.registry.state import Unreadable, read_instance
from control_plane.store.contract import MAX_TXN_OPS, Compare, Put, Store, StoreError

log = logging.getLogger("remora.registry")

VERSION: Final = 2
MAX_ATTEMPTS: Final = 5
_AT_ONCE: Final = MAX_TXN_OPS // 2
"""Instances; each is compared twice."""


class NewerStore(StoreError):
    """The store was written by a release that knows more than this one."""


async def settle(store: Store) -> None:
    """Bring the store to our version. Raises NewerStore, with nothing touched, and what the store raises."""
    for _ in range(MAX_ATTEMPTS):
        item = await store.get(keys.FORMAT)
        if item is not None:
            found = _number(item.value)
        else:
            found = 1 if (await store.range(keys.ROOT)).items else VERSION
        if found > VERSION:
            raise NewerStore(
                f"the store was written by a newer release (format {found}, this one reads {VERSION}); "
                "nothing was changed: use the newer release or another store"
            )
        if item is not None and found == VERSION:
            return
        for version in range(found, VERSION):
            log.warning("bringing the store from format %d to %d", version, version + 1)
            await _STEPS[version](store)
        raised = Put(keys.FORMAT, str(VERSION).encode())
        if (await store.txn([Compare(keys.FORMAT, item.mod_revision if item else 0)], [raised])).succeeded:
            return
    raise StoreError("the version of the store's content changes all the time; try again")


def _number(value: bytes) -> int:
    if not value.isdigit() or not 0 < len(value) < 10:
        raise NewerStore(
            "the store does not say its format in a way that this release understands; nothing was changed"
        )
    return int(value)


async def _with_roster(store: Store) -> None:
    """1 to 2: instances that registered before there was a roster."""
    changes: list[tuple[list[Compare], list[Put]]] = []
    for item in (await store.range(keys.INSTANCES)).items:
        try:
            instance = read_instance(item)
        except Unreadable as error:
            log.error("left as it is: %s", error)
            continue
        # The roster has only those who do not leave; a fresher record has its line already.
        lines = [op for op in record(instance, item.key, item.lease) if isinstance(op, Put) and op.key != item.key]
        if lines:
            changes.append(([Compare(item.key, item.mod_revision), Compare(lines[0].key, 0)], lines))
    # Many in one transaction: of one each, a fleet would take longer than anybody waits for a control plane to start.
    for at in range(0, len(changes), _AT_ONCE):
        batch = changes[at : at + _AT_ONCE]
        compares = [compare for each, _ in batch for compare in each]
        if not (await store.txn(compares, [put for _, lines in batch for put in lines])).succeeded:
            for each, lines in batch:  # one of them has changed meanwhile; that is no reason to leave out the others
                await store.txn(each, lines)


_STEPS: Final[dict[int, Callable[[Store], Awaitable[None]]]] = {1: _with_roster}
