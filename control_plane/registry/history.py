"""What resources were: the operations that keep the past beside a change, and the past read back. Pure: no store, no clock.

A change writes the resource and, in the same transaction, what it replaced: one operation more, whatever the resource's age, since the
past is a ring of slots. A deletion leaves the last spec and who deleted it, under a lease; so names that come and go leave nothing for ever.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from control_plane.registry import keys, state
from control_plane.resources import kinds
from control_plane.store.contract import Delete, KeyValue, Put
from proto.mesh.v1 import api_pb2, meta_pb2

KEPT: Final = 10
"""Revisions of a resource that are known, the present one included."""
KEPT_AFTER_DELETION_S: Final = 24 * 3600


def prefix_of(resource: api_pb2.Resource) -> bytes:
    """Where the past of a resource is kept."""
    metadata = resource.metadata
    return keys.history(kinds.of(resource).name, metadata.namespace or kinds.DEFAULT_NAMESPACE, metadata.name)


def replaced(old: api_pb2.Resource) -> Put:
    """Keeps what a change replaces."""
    return Put(_slot(prefix_of(old), old.metadata.last_change.number), _past(old))


def deleted(old: api_pb2.Resource, change: meta_pb2.Change, lease: int) -> Iterator[Put | Delete]:
    """Keeps the last spec and the deletion as long as a lease lasts, and forgets the rest."""
    prefix = prefix_of(old)
    kept = {
        _slot(prefix, old.metadata.last_change.number): _past(old),
        _slot(prefix, change.number): api_pb2.Revision(change=change).SerializeToString(deterministic=True),
    }
    yield from (Put(key, value, lease) for key, value in kept.items())
    yield from (Delete(key) for key in _slots(prefix) if key not in kept)


def forgotten(prefix: bytes) -> Iterator[Delete]:
    """Leaves nothing of a past."""
    yield from map(Delete, _slots(prefix))


def read(present: api_pb2.Resource | None, past: Iterable[KeyValue]) -> list[api_pb2.Revision]:
    """The revisions of a resource, newest first. What this release cannot read is left out."""
    found: dict[int, api_pb2.Revision] = {}
    for item in past:
        try:
            revision = api_pb2.Revision.FromString(item.value)
        except DecodeError:
            continue
        revision.revision = revision.revision or item.mod_revision
        found[revision.change.number] = revision
    if present is not None:
        # The past may have been read a little later than the present, and hold more.
        found = {number: each for number, each in found.items() if number < present.metadata.last_change.number}
        found[present.metadata.last_change.number] = _revision(present)
    return [found[number] for number in sorted(found, reverse=True)][:KEPT]


def _revision(resource: api_pb2.Resource) -> api_pb2.Revision:
    metadata = resource.metadata
    return api_pb2.Revision(revision=metadata.resource_version, change=metadata.last_change, resource=resource)


def _past(old: api_pb2.Resource) -> bytes:
    plain = api_pb2.Resource.FromString(state.stored(old))
    past = api_pb2.Revision(revision=old.metadata.resource_version, change=old.metadata.last_change, resource=plain)
    return past.SerializeToString(deterministic=True)


def _slot(prefix: bytes, number: int) -> bytes:
    return prefix + f"{number % KEPT}".encode()


def _slots(prefix: bytes) -> list[bytes]:
    return [_slot(prefix, number) for number in range(KEPT)]
