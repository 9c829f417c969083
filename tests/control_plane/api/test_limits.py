"""A limit on writes and on calls that wait: a token bucket, and how it feels from outside."""

from pathlib import Path

import grpc
import pytest

from control_plane.api import entrance
from control_plane.api.budget import WriteBudget
from control_plane.resources.load import load
from proto.mesh.v1 import api_pb2
from tests.control_plane.api.refusals import refused
from tests.control_plane.plane import plane_on
from tests.waiting import eventually_async

SERVICE = "apiVersion: remora.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {}\n"


@pytest.mark.parametrize(
    ("takes", "expected"),
    [
        # 2 per second, at most 3 at once: a full bucket, then one each half second.
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5]),
        ([0.0, 0.0, 0.0, 0.4, 0.5], [0.0, 0.0, 0.0, 0.1, 0.0]),
        # What was not used is saved up to the burst, and no further.
        ([0.0, 100.0, 100.0, 100.0, 100.0], [0.0, 0.0, 0.0, 0.0, 0.5]),
        # A refusal costs nothing.
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.5, 0.5, 0.0]),
    ],
)
def test_a_bucket(takes: list[float], expected: list[float]) -> None:
    budget = WriteBudget(per_second=2, burst=3)
    assert [budget.take(1000 + now) for now in takes] == pytest.approx(expected)


@pytest.mark.asyncio(loop_scope="session")
async def test_more_writes_than_are_taken_are_refused_and_reads_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance, "MAX_WRITES_PER_S", 0.01)
    monkeypatch.setattr(entrance, "MAX_WRITES_AT_ONCE", 3)
    async with plane_on(tmp_path) as plane:
        granted = await plane.register("warehouse.shop", "w1")
        await plane.apply(SERVICE)
        await plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", name="a"))
        key = api_pb2.InstanceKey(service="warehouse", namespace="shop", id="w1")
        for call in (
            plane.resources.Apply(api_pb2.ApplyRequest(resources=load(SERVICE, "f"))),
            plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", name="a")),
            plane.registry.Deregister(api_pb2.DeregisterRequest(instance=key)),
            plane.registry.SetHealth(api_pb2.SetHealthRequest(instance=key, health=1)),  # type: ignore[arg-type]
        ):
            code, text = await refused(call)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert text.startswith("more than 0.01 writes per second; try again in ")
        # A request that is refused for what it says takes nothing from the budget, and is told what is wrong with it.
        code, _ = await refused(plane.resources.Delete(api_pb2.DeleteRequest(kind="Service", name="A")))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        await plane.registry.KeepAlive(api_pb2.KeepAliveRequest(lease_id=granted.lease_id))
        await plane.resources.List(api_pb2.ListRequest())


@pytest.mark.asyncio(loop_scope="session")
async def test_more_calls_that_wait_than_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "MAX_WAITING", 2)
    async with plane_on(tmp_path) as plane:
        watches = [plane.resources.Watch(api_pb2.WatchRequest()) for _ in range(2)]
        for watch in watches:
            assert (await watch.read()).type == api_pb2.WatchEvent.SYNCED
        for call in (
            plane.resources.WaitProgrammed(api_pb2.WaitProgrammedRequest(revision=1)),
            plane.resources.Watch(api_pb2.WatchRequest()).read(),
        ):
            assert await refused(call) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "2 calls are waiting already; at most 2 may",
            )
        watches[0].cancel()
        third = plane.resources.Watch(api_pb2.WatchRequest())

        async def is_taken() -> bool:
            nonlocal third
            try:
                return bool((await third.read()).type == api_pb2.WatchEvent.SYNCED)
            except grpc.aio.AioRpcError:
                third = plane.resources.Watch(api_pb2.WatchRequest())
                return False

        await eventually_async(is_taken)
        third.cancel()
        watches[1].cancel()
