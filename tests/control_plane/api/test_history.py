"""What resources were: kept beside each change, shown, compared, gone back to; on both stores."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import pytest_asyncio

from control_plane.registry import history, keys
from control_plane.resources.load import load
from control_plane.store.contract import Put, StoreFull
from proto.mesh.v1 import api_pb2, meta_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import Plane, plane_on
from tests.etcd import EtcdCluster, etcd_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")

SPLIT: Final = """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {{name: split, namespace: shop}}
spec:
  parentRefs: [{{name: warehouse}}]
  rules: [{{backendRefs: [{{name: warehouse-v1, weight: {0}}}, {{name: warehouse-v2, weight: 10}}]}}]
"""
NAMED: Final[dict[str, Any]] = {"kind": "grpcroute", "namespace": "shop", "name": "split"}
CREATED, CONFIGURED, UNCHANGED = (
    api_pb2.ApplyResponse.CREATED,
    api_pb2.ApplyResponse.CONFIGURED,
    api_pb2.ApplyResponse.UNCHANGED,
)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest_asyncio.fixture(params=["embedded", "etcd"], loop_scope="session")
async def plane(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Plane]:
    if request.param == "embedded":
        target = str(tmp_path / "store")
    else:
        cluster = request.getfixturevalue("etcd")
        cluster.wipe()
        target = cluster.target
    async with plane_on(target) as running:
        yield running


async def revisions(plane: Plane) -> list[api_pb2.Revision]:
    answer = await plane.resources.History(api_pb2.HistoryRequest(**NAMED))
    return list(answer.revisions)


def weight(revision: api_pb2.Revision) -> int | None:
    """Of the first backend; None for a deletion."""
    if not revision.HasField("resource"):
        return None
    return revision.resource.grpc_route.rules[0].backend_refs[0].weight


async def rolled_back(plane: Plane, revision: int = 0, **request: Any) -> api_pb2.RollbackResponse:
    answer: api_pb2.RollbackResponse = await plane.resources.Rollback(
        api_pb2.RollbackRequest(**NAMED, revision=revision, **request)
    )
    return answer


async def test_each_change_is_kept_with_who_and_when(plane: Plane) -> None:
    first = (await plane.apply(SPLIT.format(90), by="ada")).revision
    second = (await plane.apply(SPLIT.format(50), by="grace")).revision
    await plane.apply(SPLIT.format(50), by="nobody")  # changes nothing, so it is no change
    third = (await plane.apply(SPLIT.format(20))).revision

    known = await revisions(plane)
    assert [(each.revision, weight(each), each.change.by) for each in known] == [
        (third, 20, "127.0.0.1"),
        (second, 50, "grace"),
        (first, 90, "ada"),
    ]
    assert [each.change.number for each in known] == [3, 2, 1]
    assert [each.resource.metadata.generation for each in known] == [3, 2, 1]
    times = [each.change.time.ToNanoseconds() for each in known]
    assert times == sorted(times, reverse=True) and times[-1] > 1_600_000_000 * 10**9
    (shown,) = (await plane.resources.List(api_pb2.ListRequest(kind="GRPCRoute"))).resources
    assert shown.metadata.last_change == known[0].change


async def test_as_many_as_are_kept_are_known_and_the_oldest_go(plane: Plane) -> None:
    count = history.KEPT * 2 + 3
    for number in range(1, count + 1):
        await plane.apply(SPLIT.format(number))
    assert [weight(each) for each in await revisions(plane)] == list(range(count, count - history.KEPT, -1))


async def test_going_back_is_a_change_of_its_own(plane: Plane) -> None:
    first = (await plane.apply(SPLIT.format(90))).revision
    await plane.apply(SPLIT.format(50))
    answer = await rolled_back(plane, by="ada")
    assert (answer.to_revision, answer.applied.outcome) == (first, CONFIGURED)
    assert [(each.path, each.before, each.after) for each in answer.applied.changes] == [
        ("spec.rules[0].backendRefs[0].weight", "50", "90")
    ]
    now, *past = await revisions(plane)
    assert (now.revision, weight(now), now.change.by) == (answer.revision, 90, "ada")
    assert (now.change.verb, now.change.to_revision) == (meta_pb2.Change.ROLLED_BACK, first)
    assert now.resource.metadata.generation == 3
    assert [weight(each) for each in past] == [50, 90]
    # Again: to the newest that says something else, which is what the rollback replaced.
    assert weight((await revisions(plane))[1]) == 50
    await rolled_back(plane)
    assert weight((await revisions(plane))[0]) == 50
    # What it is already.
    present = (await revisions(plane))[0].revision
    again = await rolled_back(plane, present)
    assert (again.applied.outcome, again.revision) == (UNCHANGED, present)


async def test_a_dry_rollback_says_what_would_change_and_changes_nothing(plane: Plane) -> None:
    first = (await plane.apply(SPLIT.format(90))).revision
    second = (await plane.apply(SPLIT.format(50))).revision
    answer = await rolled_back(plane, first, dry_run=True)
    assert (answer.applied.outcome, len(answer.applied.changes), answer.revision) == (CONFIGURED, 1, second)
    assert [each.revision for each in await revisions(plane)] == [second, first]


async def test_what_was_deleted_is_known_and_comes_back(plane: Plane) -> None:
    await plane.apply(SPLIT.format(90))
    kept = (await plane.apply(SPLIT.format(50))).revision
    gone = (await plane.resources.Delete(api_pb2.DeleteRequest(**NAMED, by="grace"))).revision
    deletion, last = await revisions(plane)
    assert (deletion.revision, deletion.change.verb, deletion.change.by) == (gone, meta_pb2.Change.DELETED, "grace")
    assert (last.revision, weight(last)) == (kept, 50)
    code, text = await refused(rolled_back(plane, gone))
    assert (code, text) == (
        grpc.StatusCode.NOT_FOUND,
        f"revision {gone} deleted GRPCRoute shop/split; choose one before it",
    )
    answer = await rolled_back(plane)
    assert (answer.to_revision, answer.applied.outcome) == (kept, CREATED)
    assert [weight(each) for each in await revisions(plane)] == [50, None, 50]
    # The past of a deletion ends by itself: it is under a lease.
    await plane.resources.Delete(api_pb2.DeleteRequest(**NAMED))
    store = plane.running.store
    past = (await store.range(keys.history("GRPCRoute", "shop", "split"))).items
    assert len(past) == 2 and all(item.lease for item in past)


async def test_what_cannot_be_gone_back_to(plane: Plane) -> None:
    assert await refused(rolled_back(plane)) == (
        grpc.StatusCode.NOT_FOUND,
        "no GRPCRoute shop/split, and no past of one",
    )
    assert await refused(plane.resources.History(api_pb2.HistoryRequest(**NAMED))) == (
        grpc.StatusCode.NOT_FOUND,
        "no GRPCRoute shop/split, and no past of one",
    )
    only = (await plane.apply(SPLIT.format(90))).revision
    assert await refused(rolled_back(plane)) == (
        grpc.StatusCode.NOT_FOUND,
        "GRPCRoute shop/split has no other spec to go back to",
    )
    assert await refused(rolled_back(plane, only + 100)) == (
        grpc.StatusCode.NOT_FOUND,
        f"revision {only + 100} of GRPCRoute shop/split is not known; known: {only}",
    )


async def test_a_past_spec_that_is_not_valid_any_more_does_not_come_back(plane: Plane) -> None:
    """As one that an older release took."""
    await plane.apply(SPLIT.format(90))
    (bad,) = load(SPLIT.format(50), "f")
    for backend in bad.grpc_route.rules[0].backend_refs:
        backend.weight = 0
    past = api_pb2.Revision(revision=1, change=meta_pb2.Change(number=0), resource=bad)
    slot = keys.history("GRPCRoute", "shop", "split") + b"0"
    await plane.running.store.txn((), [Put(slot, past.SerializeToString())])
    code, text = await refused(rolled_back(plane))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(
        "GRPCRoute shop/split of revision 1 is not taken any more: spec.rules[0].backendRefs: weights"
    )


async def test_a_difference_is_told_field_by_field_and_nothing_is_stored(plane: Plane) -> None:
    revision = (await plane.apply(SPLIT.format(90))).revision
    given = load(SPLIT.format(50) + "---\n" + SPLIT.format(10).replace("split", "other"), "f")
    given[0].metadata.labels["team"] = "books"
    changed, fresh = (await plane.resources.Diff(api_pb2.DiffRequest(resources=given))).differences
    assert (changed.outcome, fresh.outcome) == (CONFIGURED, CREATED)
    assert [(each.path, each.before, each.after) for each in changed.changes] == [
        ("metadata.labels", "", '{"team": "books"}'),
        ("spec.rules[0].backendRefs[0].weight", "90", "50"),
    ]
    assert (changed.before.metadata.generation, changed.after.metadata.generation) == (1, 2)
    assert not fresh.HasField("before") and [each.path for each in fresh.changes] == ["spec.parentRefs", "spec.rules"]
    assert [each.revision for each in await revisions(plane)] == [revision]
    (same,) = (await plane.resources.Diff(api_pb2.DiffRequest(resources=load(SPLIT.format(90), "f")))).differences
    assert (same.outcome, list(same.changes)) == (UNCHANGED, [])
    assert (await refused(plane.resources.Diff(api_pb2.DiffRequest())))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_more_changes_than_one_transaction_takes_with_their_past(plane: Plane) -> None:
    def services(port: int) -> str:
        return "---\n".join(
            f"apiVersion: remora.dev/v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
            for number in range(100)
        )

    assert len((await plane.apply(services(1))).applied) == 100
    code, text = await refused(plane.apply(services(2)))
    assert (code, text) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "200 new and replaced specs in one request; at most 128 fit: apply in parts (RMR0001)",
    )
    halves = services(2).split("---\n")
    await plane.apply("---\n".join(halves[:64]))
    await plane.apply("---\n".join(halves[64:]))


async def test_a_full_store_can_still_be_emptied(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    await plane.apply(SPLIT.format(90))
    await plane.apply(SPLIT.format(50))
    store = plane.running.store
    carried_out = store.txn

    async def full(compares: Any, ops: Any) -> Any:
        if any(isinstance(op, Put) for op in ops):
            raise StoreFull("no room left")
        return await carried_out(compares, ops)

    monkeypatch.setattr(store, "txn", full)
    assert (await refused(plane.apply(SPLIT.format(1))))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await plane.resources.Delete(api_pb2.DeleteRequest(**NAMED))
    assert not (await plane.resources.List(api_pb2.ListRequest())).resources
    assert not (await store.range(keys.HISTORY)).items
