"""Who holds which certificate: written when one is signed and when its holder has it in force, gone when it expires.

A node whose certificate was renewed has two entries until it says that the new one is in force: nothing is dropped that it may use.
"""

from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256
from math import ceil
from typing import Final

from google.protobuf.message import DecodeError

from control_plane.identity.authority import Issued
from control_plane.identity.possession import Shown
from control_plane.identity.spiffe import SpiffeId
from control_plane.store.contract import (
    MAX_LEASE_TTL_S,
    MIN_LEASE_TTL_S,
    Compare,
    Delete,
    KeyValue,
    LeaseNotFound,
    Put,
    Store,
)
from proto.mesh.v1 import identity_pb2

PREFIX: Final = b"/remora/identity/holders/"
"""Outside of what is watched: nobody's configuration depends on it."""
MAX_OF_NODE: Final = 16
"""Certificates of one node that are remembered: one that asks again and again and confirms none has used the first ones up."""


def _of_node(node_id: str) -> bytes:
    return PREFIX + sha256(node_id.encode()).hexdigest()[:32].encode() + b"/"


class Holders:
    """The entries of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def issued(self, node_id: str, identity: SpiffeId, issued: Issued, now: datetime) -> None:
        """A certificate was signed."""
        there = sorted((await self._store.range(_of_node(node_id))).items, key=lambda item: item.create_revision)
        await self._forget(there[: max(0, len(there) + 1 - MAX_OF_NODE)])
        holder = identity_pb2.Holder(
            node_id=node_id, identity=str(identity), serial=issued.serial, root=issued.root, generation=0
        )
        holder.not_after.FromDatetime(issued.not_after)
        lease = await self._lease(issued.not_after, now)
        key = _of_node(node_id) + issued.serial.encode()
        await self._store.txn([Compare(key, 0)], [Put(key, holder.SerializeToString(deterministic=True), lease)])

    async def confirmed(self, node_id: str, shown: Shown, generation: int, now: datetime) -> None:
        """A node has a certificate and a trust in force, and no older certificate any more."""
        ours = str(shown.identity)
        key = _of_node(node_id) + shown.serial.encode()
        there = {item.key: item for item in await self._of(node_id, ours)}
        known = there.pop(key, None)
        holder = identity_pb2.Holder(
            node_id=node_id, identity=ours, serial=shown.serial, root=shown.root, generation=generation
        )
        holder.not_after.FromDatetime(shown.not_after)
        value = holder.SerializeToString(deterministic=True)
        if known is None:  # it said that it leaves, and came back
            lease = await self._lease(shown.not_after, now)
            await self._store.txn([Compare(key, 0)], [Put(key, value, lease)])
        elif known.value != value:
            try:
                await self._store.txn([Compare(key, known.mod_revision)], [Put(key, value, known.lease)])
            except LeaseNotFound:
                return  # it has expired just now
        await self._forget(there.values())

    async def left(self, node_id: str, identity: SpiffeId) -> None:
        """A node uses no certificate of this identity any more."""
        await self._forget(await self._of(node_id, str(identity)))

    async def _of(self, node_id: str, identity: str) -> list[KeyValue]:
        """The entries of a node; another service's node of that name is none of its business."""
        found = []
        for item in (await self._store.range(_of_node(node_id))).items:
            holder = _read(item.value)
            if holder is not None and holder.identity == identity:
                found.append(item)
        return found

    async def _forget(self, items: Iterable[KeyValue]) -> None:
        for item in items:
            await self._store.txn([Compare(item.key, item.mod_revision)], [Delete(item.key)])
            if item.lease:
                await self._store.revoke(item.lease)

    async def _lease(self, not_after: datetime, now: datetime) -> int:
        """One that ends with a certificate."""
        life_s = ceil((not_after - now).total_seconds())
        return await self._store.grant(min(max(life_s, MIN_LEASE_TTL_S), MAX_LEASE_TTL_S))

    async def all(self, now: datetime) -> list[identity_pb2.Holder]:
        """Every certificate that is still good, in order of node."""
        found = [_read(item.value) for item in (await self._store.range(PREFIX)).items]
        alive = [each for each in found if each is not None and each.not_after.ToDatetime(now.tzinfo) > now]
        return sorted(alive, key=lambda each: (each.node_id, each.not_after.ToNanoseconds()))


def _read(data: bytes) -> identity_pb2.Holder | None:
    try:
        return identity_pb2.Holder.FromString(data)
    except DecodeError:
        return None
