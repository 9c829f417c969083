"""Who holds which certificate: written when one is signed and when its holder has it in force, gone when it expires.

A node whose certificate was renewed has two entries until it says that the new one is in force: nothing is dropped that it may use.
"""

from datetime import datetime
from hashlib import sha256
from math import ceil
from typing import Final

from google.protobuf.message import DecodeError

from control_plane.identity.authority import Issued
from control_plane.identity.possession import NotProven
from control_plane.identity.spiffe import SpiffeId
from control_plane.store.contract import MAX_LEASE_TTL_S, MIN_LEASE_TTL_S, Compare, Delete, LeaseNotFound, Put, Store
from proto.mesh.v1 import identity_pb2

PREFIX: Final = b"/remora/identity/holders/"
"""Outside of what is watched: nobody's configuration depends on it."""
MAX_OF_NODE: Final = 16
"""Certificates of one node that are remembered; one that asks more often and never confirms is refused."""


def _of_node(node_id: str) -> bytes:
    return PREFIX + sha256(node_id.encode()).hexdigest()[:32].encode() + b"/"


class Holders:
    """The entries of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def issued(self, node_id: str, identity: SpiffeId, issued: Issued, now: datetime) -> None:
        """A certificate was signed."""
        there = await self._store.range(_of_node(node_id))
        if len(there.items) >= MAX_OF_NODE:
            raise NotProven(f"{node_id} was given {MAX_OF_NODE} certificates and has confirmed none; is it two nodes?")
        holder = identity_pb2.Holder(
            node_id=node_id, identity=str(identity), serial=issued.serial, root=issued.root, generation=0
        )
        holder.not_after.FromDatetime(issued.not_after)
        life_s = ceil((issued.not_after - now).total_seconds())
        lease = await self._store.grant(min(max(life_s, MIN_LEASE_TTL_S), MAX_LEASE_TTL_S))
        key = _of_node(node_id) + issued.serial.encode()
        await self._store.txn([Compare(key, 0)], [Put(key, holder.SerializeToString(deterministic=True), lease)])

    async def confirmed(self, node_id: str, identity: SpiffeId, serial: str, generation: int, *, leaves: bool) -> None:
        """A node has a certificate and a trust in force, and no older certificate any more; or none at all."""
        key = _of_node(node_id) + serial.encode()
        ours = str(identity)
        for item in (await self._store.range(_of_node(node_id))).items:
            holder = _read(item.value)
            if holder is None or holder.identity != ours:
                continue  # another service's node of that name is none of its business
            if item.key != key or leaves:
                await self._store.txn([Compare(item.key, item.mod_revision)], [Delete(item.key)])
                if item.lease:
                    await self._store.revoke(item.lease)
            elif holder.generation != generation:
                holder.generation = generation
                put = Put(key, holder.SerializeToString(deterministic=True), item.lease)
                try:
                    await self._store.txn([Compare(key, item.mod_revision)], [put])
                except LeaseNotFound:
                    continue  # it has expired just now

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
