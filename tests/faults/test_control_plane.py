"""What the mesh does when parts of its control plane die, stop, fill up or are cut off: real processes, real etcd, under traffic."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest

from control_plane.registry import keys, state
from control_plane.store.contract import Delete, Put, StoreFull
from control_plane.translate.snapshot import ROUTES
from proto.mesh.v1 import api_pb2, api_pb2_grpc
from tests.control_plane.plane import Node
from tests.faults.replicated import Replicated, replicated, under_traffic
from tests.tools import need
from tests.waiting import eventually, eventually_async

PARTS: Final = 50
"""Resources in one file."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    with replicated(tmp_path_factory.mktemp("replicated")) as mesh:
        yield mesh


@pytest.fixture
def mesh(shared: Replicated) -> Replicated:
    """Whole, whatever the test before did to it."""
    shared.make_whole()
    return shared


def test_kill_9_of_etcds_leader(mesh: Replicated) -> None:
    with under_traffic(mesh) as traffic:
        leader = mesh.etcd.leader()
        leader.kill()
        traffic.goes_on()
        leader.start()
        traffic.goes_on()
    assert traffic.history.in_doubt <= 10, "writes that compare what they replace outlive the loss of a member"


def test_kill_9_of_a_replica_in_the_middle_of_an_apply(mesh: Replicated) -> None:
    """A file of many resources is stored as a whole or not at all; the nodes go to the other replica."""
    stop, answered = threading.Event(), [0]

    def apply() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            request = api_pb2.ApplyRequest()
            for each in range(PARTS):
                resource = request.resources.add()
                resource.metadata.name, resource.metadata.namespace = f"part-{each}", "whole"
                resource.service.selector["value"] = str(number)
            try:
                mesh.stub(0, api_pb2_grpc.ResourcesStub).Apply(request, timeout=5)
                answered[0] = number
            except grpc.RpcError:
                if stop.wait(0.05):
                    return

    with under_traffic(mesh) as traffic:
        worker = threading.Thread(target=apply, daemon=True)
        worker.start()
        eventually(lambda: answered[0] >= 2)
        mesh.replicas[0].kill()
        stop.set()
        worker.join(10)
        stored = mesh.background.do(mesh.store.range(keys.resource("Service", "whole", "")))
        values = {state.read(item).service.selector["value"] for item in stored.items}
        assert len(stored.items) == PARTS and len(values) == 1, f"half of a file is stored: {values}"
        assert int(values.pop()) in (answered[0], answered[0] + 1)
        traffic.goes_on()
        eventually(lambda: len(mesh.nodes_at(1).nodes) == 4, timeout_s=20, message="not all nodes have come over")
        mesh.start()
        traffic.goes_on()
    assert "Traceback" not in "".join(process.err for process in mesh.replicas)


def _metric(address: str, name: str) -> float:
    text = urlopen(f"http://{address}/metrics", timeout=5).read().decode()
    return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])


def test_a_replica_that_is_cut_off_from_etcd_serves_says_since_when_it_is_stale_and_refuses_writes(
    mesh: Replicated,
) -> None:
    with under_traffic(mesh) as traffic:
        mesh.link.cut()
        begin = monotonic()
        eventually(lambda: mesh.nodes_at(1).HasField("stale"), timeout_s=20, message="it does not notice")
        noticed_s = monotonic() - begin
        address, http = mesh.addresses[1], mesh.https[1]
        said = mesh.remora("status", "--server", address)
        assert said.code == 0 and "the store has not been reached for" in said.err
        assert _metric(http, "remora_control_plane_stale") == 1.0
        assert 0.0 < _metric(http, "remora_control_plane_stale_seconds") <= monotonic() - begin
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"http://{http}/healthz", timeout=5)
        text = "apiVersion: remora.dev/v1\nkind: Service\nmetadata: {name: meanwhile}\nspec: {}\n"
        refused = mesh.remora("apply", "-f", "-", "--server", address, text=text)
        assert (refused.code, refused.out) == (3, "") and "etcd" in refused.err and "Traceback" not in refused.err
        assert mesh.remora("endpoints", "echo", "--server", address).code == 0
        traffic.goes_on()  # by the other one
        mesh.background.do(mesh.store.compact())  # so that it cannot go on where it was
        mesh.link.heal()
        eventually(lambda: not mesh.nodes_at(1).HasField("stale"), timeout_s=20, message="it does not come back")
        traffic.goes_on()
    assert noticed_s < 15


@pytest.mark.slow
def test_compaction_while_a_watch_is_behind(mesh: Replicated) -> None:
    """As above, and what it missed is gone from the store's history meanwhile."""
    with under_traffic(mesh) as traffic:
        mesh.link.cut()
        eventually(lambda: mesh.nodes_at(1).HasField("stale"), timeout_s=20)
        traffic.goes_on()
        mesh.background.do(mesh.store.compact())
        traffic.goes_on(5)
        mesh.link.heal()
        eventually(lambda: not mesh.nodes_at(1).HasField("stale"), timeout_s=20)
        traffic.goes_on()


@pytest.mark.slow
def test_two_of_three_members_of_etcd(mesh: Replicated) -> None:
    """No write is taken, all calls go on; then everything does."""
    with under_traffic(mesh) as traffic:
        one, two = mesh.etcd.members[1:]
        one.kill()
        two.kill()
        eventually(lambda: all(mesh.nodes_at(number).HasField("stale") for number in (0, 1)), timeout_s=20)
        traffic.calls_go_on()
        one.start()
        traffic.goes_on()
        two.start()
        traffic.goes_on()


@pytest.mark.slow
def test_every_member_of_etcd_for_a_minute(mesh: Replicated) -> None:
    """Twelve times as long as leases last: nobody is lost, since etcd counts their time only while it runs."""
    with under_traffic(mesh) as traffic:
        mesh.etcd.stop()
        gone_at = monotonic()
        while monotonic() - gone_at < 60:
            traffic.calls_go_on()
        assert sorted(each.id for each in mesh.instances()) == ["echo-envoy", "echo-remora"]
        mesh.etcd.start()
        traffic.goes_on()


@pytest.mark.slow
def test_both_replicas_for_longer_than_leases_last(mesh: Replicated) -> None:
    """All leases end, and etcd goes on: the instances are held, and served, until they have registered again."""
    with under_traffic(mesh) as traffic:
        for replica in mesh.replicas:
            replica.kill()
        gone = keys.INSTANCES
        eventually(lambda: not mesh.background.do(mesh.store.range(gone)).items, timeout_s=20)
        traffic.calls_go_on()
        mesh.start()
        assert {each.id for each in mesh.instances()} == {"echo-envoy", "echo-remora"}
        mesh.until_healthy("echo-envoy", "echo-remora")
        traffic.goes_on()
    assert "ended within seconds" in "".join(process.err for process in mesh.replicas)


@pytest.mark.slow
def test_a_replica_that_is_stopped_is_left_by_its_nodes(mesh: Replicated) -> None:
    """SIGSTOP: its connections stay."""
    with under_traffic(mesh) as traffic:
        before = len(mesh.nodes_at(1).nodes)
        assert before == 4
        mesh.replicas[0].send(signal.SIGSTOP)
        traffic.goes_on(10, timeout_s=60)

        def are_over() -> bool:
            answer: Any = mesh.nodes_at(1)
            return sum(not node.replica for node in answer.nodes) == 4

        eventually(are_over, timeout_s=60, message="nodes stay at the replica that is stopped")
        mesh.replicas[0].send(signal.SIGCONT)
        traffic.goes_on()


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_sidecars_that_all_reconnect_at_once(mesh: Replicated, count: int) -> None:
    """A replica dies, and all its nodes turn to the other one in the same moment: calls and writes go on meanwhile."""

    async def crowd(address: str) -> tuple[list[Node], float]:
        begin = monotonic()
        nodes = [Node(address, f"crowd.shop~{number}", service="crowd", namespace="shop") for number in range(count)]
        await asyncio.gather(*(node.follow() for node in nodes))
        await eventually_async(lambda: all(ROUTES in node.held for node in nodes), timeout_s=120)
        return nodes, monotonic() - begin

    async def leave(nodes: list[Node]) -> None:
        await asyncio.gather(*(node.close() for node in nodes))

    do = mesh.background.do
    with under_traffic(mesh) as traffic:
        first, _ = do(crowd(mesh.addresses[0]), 200)
        mesh.replicas[0].kill()
        second, took_s = do(crowd(mesh.addresses[1]), 200)
        traffic.goes_on()
        assert len(mesh.nodes_at(1).nodes) >= count
        do(leave([*first, *second]), 60)
        mesh.start()
        traffic.goes_on()
    assert took_s < 10 + count / 10


@pytest.mark.slow
def test_a_full_etcd(tmp_path: Path) -> None:
    """Its quota is used up: writes are refused in plain words, calls go on, no lease is lost; then somebody makes room."""
    with replicated(tmp_path, flags=["--quota-backend-bytes", "6000000"]) as mesh:
        store, do = mesh.store, mesh.background.do
        with under_traffic(mesh) as traffic:
            filler = [Put(b"/filler", b"x" * 900_000)]
            with pytest.raises(StoreFull):
                for _ in range(30):
                    do(store.txn((), filler))
            eventually(lambda: traffic.history.refused, message="writes are still taken")
            text = "apiVersion: remora.dev/v1\nkind: Service\nmetadata: {name: meanwhile}\nspec: {}\n"
            refused = mesh.remora("apply", "-f", "-", text=text)
            assert refused.code == 1 and "is full" in refused.err and "compact and defragment it" in refused.err
            full_at = monotonic()
            while monotonic() - full_at < 8:  # longer than leases last
                traffic.calls_go_on()
            assert sorted(mesh.healthy()) == ["echo-envoy", "echo-remora"]
            do(store.txn((), [Delete(b"/filler")]))
            do(store.compact())

            def has_room() -> bool:
                for member in mesh.etcd.members:
                    member.post("maintenance/defragment")
                mesh.etcd.disarm()
                return mesh.remora("apply", "-f", "-", text=text).code == 0

            eventually(has_room, timeout_s=60)
            traffic.goes_on()


@pytest.mark.slow
@pytest.mark.parametrize("jump", ["+1d", "-1d"])
def test_a_clock_that_jumps(tmp_path: Path, jump: str) -> None:
    """The replicas' clocks are put forward and back by a day: leases, time-outs and the order of changes do not go by them."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        need("faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with replicated(tmp_path, env=env) as mesh, under_traffic(mesh) as traffic:
        for text in (jump, "+0"):
            clock.write_text(text)
            traffic.goes_on()
            shown = mesh.stub(0, api_pb2_grpc.ResourcesStub).Apply(_service(f"after{len(text)}"), timeout=5).applied[0]
            created = shown.resource.metadata.creation_timestamp.ToDatetime(UTC)
            days = (created - datetime.now(UTC)).total_seconds() / 86400
            assert days == pytest.approx({"+1d": 1, "-1d": -1, "+0": 0}[text], abs=0.1), "the clock did not jump"
            assert sorted(mesh.healthy()) == ["echo-envoy", "echo-remora"]


def _service(name: str) -> api_pb2.ApplyRequest:
    request = api_pb2.ApplyRequest()
    resource = request.resources.add()
    resource.metadata.name = name
    resource.service.SetInParent()
    return request
