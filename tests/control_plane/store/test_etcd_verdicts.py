"""What a failure of etcd's means, what became of a transaction in doubt, and a prefix in etcd's terms."""

import grpc
import pytest

from control_plane.store.contract import Compare, Delete, KeyValue, LeaseNotFound, Put, StoreError, StoreFull
from control_plane.store.etcd import was_ours
from control_plane.store.etcd_members import AuthIsOff, HistoryGone, Verdict, judge
from control_plane.store.etcd_watch import end_of

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (Code.UNAVAILABLE, "etcdserver: no leader", Verdict.NOT_DONE),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.NOT_DONE),
        (Code.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.NOT_LET_IN),
        (Code.UNAVAILABLE, "etcdserver: invalid auth token", Verdict.NOT_LET_IN),
        (Code.INVALID_ARGUMENT, "etcdserver: user name is empty", Verdict.NOT_LET_IN),
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", Verdict.NOT_LET_IN),
        (Code.UNAVAILABLE, "etcdserver: request timed out", Verdict.IN_DOUBT),
        (Code.UNAVAILABLE, "etcdserver: leader changed", Verdict.IN_DOUBT),
        (Code.UNAVAILABLE, "Socket closed", Verdict.IN_DOUBT),
        (Code.UNKNOWN, "context deadline exceeded", Verdict.IN_DOUBT),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.IN_DOUBT),
        (Code.CANCELLED, "", Verdict.IN_DOUBT),
        (Code.INTERNAL, "stream reset", Verdict.IN_DOUBT),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", StoreFull),
        (Code.RESOURCE_EXHAUSTED, "trying to send message larger than max", StoreError),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", LeaseNotFound),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", HistoryGone),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", StoreError),
        (Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled", AuthIsOff),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", StoreError),
        (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", StoreError),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", StoreError),
        (Code.UNIMPLEMENTED, "unknown service etcdserverpb.KV", StoreError),
    ],
)
def test_a_failure_means(code: Code, text: str, verdict: object) -> None:
    assert judge(code, text) is verdict


def kv(key: bytes, value: bytes, revision: int, lease: int = 0) -> KeyValue:
    return KeyValue(key, value, 1, revision, lease)


SWAP = [Compare(b"a", 5)]
A = Put(b"a", b"new")
B = Put(b"b", b"too", 7)


@pytest.mark.parametrize(
    ("compares", "ops", "found", "revision"),
    [
        pytest.param(SWAP, [A], [kv(b"a", b"new", 9)], 9, id="done: the key holds what was put"),
        pytest.param(SWAP, [A, B], [kv(b"a", b"new", 9), kv(b"b", b"too", 9, 7)], 9, id="done: all keys do"),
        pytest.param(SWAP, [A, Delete(b"c")], [kv(b"a", b"new", 9), None], 9, id="done: and the deleted key is gone"),
        pytest.param([Compare(b"a", 0)], [A], [kv(b"a", b"new", 9)], 9, id="done: the key was created"),
        pytest.param([*SWAP, Compare(b"x", 3)], [A], [kv(b"a", b"old", 5)], 0, id="not done: as before"),
        pytest.param([*SWAP, Compare(b"b", 3)], [A, B], [kv(b"a", b"old", 5), kv(b"b", b"x", 8)], 0, id="not done"),
        pytest.param(SWAP, [A], [kv(b"a", b"other", 9)], None, id="unknown: somebody wrote, before or after"),
        pytest.param(SWAP, [A], [None], None, id="unknown: somebody deleted, before or after"),
        pytest.param(SWAP, [A, B], [kv(b"a", b"new", 9), kv(b"b", b"x", 10)], None, id="unknown: one is different"),
        pytest.param(SWAP, [A, B], [kv(b"a", b"new", 9), kv(b"b", b"too", 8, 7)], None, id="unknown: two revisions"),
        pytest.param(SWAP, [A, B], [kv(b"a", b"new", 9), kv(b"b", b"too", 9, 8)], None, id="unknown: another lease"),
        pytest.param(SWAP, [A, Delete(b"c")], [kv(b"a", b"new", 9), kv(b"c", b"", 2)], None, id="unknown: not deleted"),
        pytest.param([*SWAP, Compare(b"x", 0)], [A], [kv(b"a", b"old", 5)], None, id="unknown: x may be deleted, and then"),
    ],
)  # fmt: skip
def test_what_became_of_a_transaction_in_doubt(
    compares: list[Compare], ops: list[Put | Delete], found: list[KeyValue | None], revision: int | None
) -> None:
    assert was_ours(compares, ops, found) == revision


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"", b"\0"), (b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"a/\x00", b"a/\x01")]
)
def test_a_prefix_as_a_range_of_etcd(prefix: bytes, end: bytes) -> None:
    assert end_of(prefix) == end
