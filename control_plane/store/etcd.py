"""The store of everything but a laptop: an etcd cluster (3.4 or later), spoken to with our own client.

Not the package etcd3, because its last release ships messages that protobuf 4 and later refuse to load; nor one of the asyncio clients,
because what was tried of them loses events of a watch when a member dies.

The parts: `etcd_target` (what the target says), `etcd_members` (which member to call, retries, tokens), `etcd_watch` and
`etcd_leases` (the two streams). Here is what the contract's methods mean in etcd's terms.

**Transactions whose outcome is in doubt** (the member died after it was asked). One that compares a key and puts it is tried again:
once it was carried out, its own comparison is false, so it is not carried out twice. If a later try finds the comparison false, a reading
tells who made it so: `was_ours`. Every other transaction raises StoreUnavailable, because doing it again could overwrite what somebody
else wrote meanwhile. What no client can exclude: a stopped member that wakes up later still carries out what it was asked, if the
comparisons hold then, as they may for "is not there" once the key is deleted.

etcd keeps its history until somebody compacts it: the control plane's sweeper does.
"""

import os
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from control_plane.store import etcd_watch
from control_plane.store.contract import (
    Compare,
    Delete,
    Event,
    KeyValue,
    LeaseNotFound,
    Listing,
    Put,
    StoreError,
    StoreUnavailable,
    TxnResult,
    check_ttl,
    check_txn,
)
from control_plane.store.etcd_leases import KeepAlives
from control_plane.store.etcd_members import PATIENCE, HistoryGone, Kind, Members, Patience
from control_plane.store.etcd_target import Target, parse
from proto.etcd.v1 import rpc_pb2 as pb

PAGE_BYTES: Final = 1_000_000
"""A page of a listing aims at this size…"""
FIRST_PAGE_KEYS: Final = 500
MAX_PAGE_KEYS: Final = 10_000
"""… and never has more keys."""
MAX_LISTINGS: Final = 5
"""A listing begins again if it is compacted away before its last page."""
_MAX_ID: Final = 2**63 - 1


class EtcdStore:
    """See the module. `open` makes one; `Store` in `contract` says what it does."""

    def __init__(self, target: Target, patience: Patience) -> None:
        self._members = Members(target, patience)
        self._keep_alives = KeepAlives(self._members)

    @classmethod
    async def open(cls, target: str, patience: Patience = PATIENCE) -> "EtcdStore":
        """Connect. Raises BadTarget, StoreUnavailable if etcd is away, StoreError if it does not let us in."""
        store = cls(parse(target, os.environ), patience)
        try:
            await store._check()
        except BaseException:
            await store.close()
            raise
        return store

    async def _check(self) -> None:
        """A reading that needs a quorum and a valid login, but no permission."""
        request = pb.RangeRequest(key=b"\0", count_only=True)
        try:
            await self._members.call(lambda member: member.kv.Range, request, Kind.READ)
        except StoreError as error:
            if "permission denied" not in str(error):
                raise

    # -- reading ------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> KeyValue | None:
        self._members.check_open()
        if not key:
            return None
        answer = await self._members.call(lambda member: member.kv.Range, pb.RangeRequest(key=key), Kind.READ)
        return _key_value(answer.response.kvs[0]) if answer.response.kvs else None

    async def range(self, prefix: bytes) -> Listing:
        for _ in range(MAX_LISTINGS):
            try:
                return await self._listing(prefix)
            except HistoryGone:
                continue
        raise StoreUnavailable(f"{self._members.target} is compacted faster than it can be read")

    async def _listing(self, prefix: bytes) -> Listing:
        """Page by page, all at the revision of the first."""
        request = pb.RangeRequest(key=prefix or b"\0", range_end=etcd_watch.end_of(prefix), limit=FIRST_PAGE_KEYS)
        items: list[KeyValue] = []
        while True:
            response = (await self._members.call(lambda member: member.kv.Range, request, Kind.READ)).response
            items.extend(_key_value(each) for each in response.kvs)
            request.revision = request.revision or response.header.revision
            if not response.more:
                return Listing(tuple(items), request.revision)
            request.key = response.kvs[-1].key + b"\0"
            request.limit = min(MAX_PAGE_KEYS, max(1, len(response.kvs) * PAGE_BYTES // response.ByteSize()))

    def watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[tuple[Event, ...], None]:
        return etcd_watch.follow(self._members, prefix, start_revision)

    # -- writing ------------------------------------------------------------------------------------

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
        self._members.check_open()
        check_txn(compares, ops)
        if any(isinstance(op, Put) and not 0 <= op.lease <= _MAX_ID for op in ops):
            raise LeaseNotFound("the lease has ended or never was")
        compared = {compare.key for compare in compares}
        is_guarded = any(isinstance(op, Put) and op.key in compared for op in ops)
        request = pb.TxnRequest(
            compare=[
                pb.Compare(target=pb.Compare.MOD, result=pb.Compare.EQUAL, key=each.key, mod_revision=each.mod_revision)
                for each in compares
            ],
            success=[_request(op) for op in ops],
        )
        kind = Kind.GUARDED if is_guarded else Kind.ONCE
        answer = await self._members.call(lambda member: member.kv.Txn, request, kind)
        response = answer.response
        if response.succeeded or not answer.was_in_doubt:
            return TxnResult(response.succeeded, response.header.revision)
        revision = was_ours(compares, ops, await self._read([op.key for op in ops]))
        if revision is None:
            raise StoreUnavailable(
                f"{self._members.target} lost an answer, and the keys have changed; the write may or may not have happened"
            )
        return TxnResult(True, revision) if revision else TxnResult(False, response.header.revision)

    async def _read(self, keys: Sequence[bytes]) -> list[KeyValue | None]:
        """Some keys at one revision."""
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=key)) for key in keys])
        answer = await self._members.call(lambda member: member.kv.Txn, request, Kind.READ)
        found = [each.response_range.kvs for each in answer.response.responses]
        return [_key_value(kvs[0]) if kvs else None for kvs in found]

    async def compact(self, revision: int | None = None) -> None:
        request = pb.RangeRequest(key=b"\0", count_only=True)
        answer = await self._members.call(lambda member: member.kv.Range, request, Kind.READ)
        present = answer.response.header.revision
        compaction = pb.CompactionRequest(revision=present if revision is None else min(revision, present))
        try:
            await self._members.call(lambda member: member.kv.Compact, compaction, Kind.IDEMPOTENT)
        except HistoryGone:
            return  # it is compacted already

    # -- leases -------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> int:
        self._members.check_open()
        check_ttl(ttl_s)
        # Asked again when in doubt: a lease that nobody knows of ends by itself.
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        answer = await self._members.call(lambda member: member.lease.LeaseGrant, request, Kind.IDEMPOTENT)
        return answer.response.ID

    async def keep_alive(self, lease: int) -> int:
        self._members.check_open()
        if not 0 < lease <= _MAX_ID:
            raise LeaseNotFound("the lease has ended or never was")
        return await self._keep_alives.renew(lease)

    async def revoke(self, lease: int) -> None:
        self._members.check_open()
        if not 0 < lease <= _MAX_ID:
            return
        request = pb.LeaseRevokeRequest(ID=lease)
        try:
            await self._members.call(lambda member: member.lease.LeaseRevoke, request, Kind.IDEMPOTENT)
        except LeaseNotFound:
            return

    async def close(self) -> None:
        await self._members.close()
        await self._keep_alives.close()


def was_ours(compares: Sequence[Compare], ops: Sequence[Put | Delete], found: Sequence[KeyValue | None]) -> int | None:
    """Whether a transaction in doubt was carried out, from what stands at the keys of its `ops` after its comparisons became false.

    The revision at which it was; 0 if it was not; None if that cannot be told. It was if everything is as it leaves things, all
    of one revision (had somebody else written the very same, nothing would be different). It was not if a key that it
    compares and puts is as it was before, and if it never can be: no revision comes back, but "is not there" may.
    """
    before = {compare.key: compare.mod_revision for compare in compares}
    revisions = set[int]()
    for op, item in zip(ops, found, strict=True):
        revision = item.mod_revision if item else 0
        if isinstance(op, Put) and before.get(op.key) == revision:
            return 0 if all(before.values()) else None
        is_as_left = (
            item is None if isinstance(op, Delete) else item and (item.value, item.lease) == (op.value, op.lease)
        )
        if not is_as_left:
            return None
        if item:
            revisions.add(revision)
    return revisions.pop() if len(revisions) == 1 else None


def _request(op: Put | Delete) -> pb.RequestOp:
    if isinstance(op, Put):
        return pb.RequestOp(request_put=pb.PutRequest(key=op.key, value=op.value, lease=op.lease))
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=op.key))


def _key_value(item: pb.KeyValue) -> KeyValue:
    return KeyValue(item.key, item.value, item.create_revision, item.mod_revision, item.lease)
