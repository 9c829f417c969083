"""What goes on when the parts that steer the mesh are gone: control plane killed, etcd away, both back again."""

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

import grpc
import pytest

from proto.mesh.v1 import api_pb2
from tests.etcd import EtcdCluster, etcd_cluster
from tests.mesh import Caller, Load, Mesh, load, running
from tests.waiting import eventually

LEASE_S: Final = 5
GRACE_S: Final = 10
"""What leases get on top when the control plane opens its store again."""
SERVICE: Final = """
apiVersion: remora.dev/v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{service: echo, version: {version}}}}}
"""


@contextmanager
def traffic(mesh: Mesh) -> Iterator[list[Load]]:
    """Two instances and two callers, one of each engine, and calls between all of them."""
    for engine in ("remora", "envoy"):
        options = ("--ttl", f"{LEASE_S}s", "--version", engine)
        mesh.echo(f"echo-{engine}", engine=engine, options=options, is_awaited=False)
        mesh.caller(engine)
    mesh.until_healthy("echo-remora", "echo-envoy")
    with ExitStack() as stack:
        loads = [stack.enter_context(_load(mesh.caller(engine))) for engine in ("remora", "envoy")]
        eventually(lambda: all(set(each.instances) == {"echo-remora", "echo-envoy"} for each in loads))
        yield loads


def _load(caller: Caller) -> AbstractContextManager[Load]:
    """Once the first call has been answered."""
    stub = caller.stub("echo:80")

    def is_answered() -> bool:
        try:
            return caller.says(stub) != ""
        except grpc.RpcError:
            return False

    eventually(is_answered)
    return load(lambda: caller.says(stub), threads=2, interval_s=0.02)


def connected(mesh: Mesh) -> list[str]:
    """Node ids, in order; empty if the control plane does not answer."""
    try:
        return [node.id for node in mesh.nodes.Nodes(api_pb2.NodesRequest(), timeout=2).nodes]
    except grpc.RpcError:
        return []


def test_calls_go_on_while_the_control_plane_is_gone_and_all_is_well_when_it_is_back(mesh: Mesh) -> None:
    with traffic(mesh) as loads:
        before = connected(mesh)
        assert len(before) == 4
        mesh.plane.kill()
        for each in loads:
            each.more(50)
        newcomer = mesh.echo("echo-late", is_awaited=False)  # it waits until there is a control plane
        newcomer.child("sidecar")
        mesh.start()
        # The endpoints are never empty: leases outlive the restart, although nobody could renew them meanwhile.
        assert set(mesh.healthy()) >= {"echo-remora", "echo-envoy"}
        eventually(lambda: set(connected(mesh)) > set(before), timeout_s=20, message="not all nodes came back")
        mesh.until_healthy("echo-remora", "echo-envoy", "echo-late")
        # A change reaches all of them again, old and new.
        said = mesh.apply(SERVICE.format(name="after", version="remora"), "--wait").err
        assert "acknowledged by 5 of 5 nodes" in said
        eventually(lambda: all(each.instances["echo-late"] > 0 for each in loads))
        caller = mesh.caller()
        assert caller.says(caller.stub("after:80")) == "echo-remora"
    for each in loads:
        assert each.failed == {}
        assert each.longest_s < 3
    assert "Traceback" not in "".join(process.err for process in mesh.processes)


def test_the_control_plane_can_be_restarted_again_and_again(mesh: Mesh) -> None:
    """Instances keep their leases through restarts in a row; nobody registers twice."""
    mesh.echo("echo-1", options=("--ttl", f"{LEASE_S}s"))
    for number in range(3):
        if number % 2:
            mesh.plane.stop()
        else:
            mesh.plane.kill()
        mesh.start()
        assert mesh.healthy() == ["echo-1"]
    mesh.apply(SERVICE.format(name="again", version="v1"))
    assert mesh.processes[1].err.count("registered as") == 1


def test_a_program_is_stopped_without_a_control_plane_too(mesh: Mesh) -> None:
    process = mesh.echo("echo-1", EXIT_CODE="4")
    mesh.plane.kill()
    start = monotonic()
    assert process.stop() == 4
    assert monotonic() - start < 15
    assert "Traceback" not in process.err


def test_a_program_that_starts_without_a_control_plane_serves_by_what_its_sidecar_kept(mesh: Mesh) -> None:
    """Killed with all that is below it, and started again under its name; calls to others go on. Then the control plane is back."""
    mesh.echo("stays")
    victim = mesh.echo("returns", options=("--version", "v2"))
    caller = mesh.caller()
    stub = caller.stub("echo:80")
    eventually(lambda: {caller.says(stub) for _ in range(10)} == {"stays", "returns"})
    kept = mesh.directory / "state" / "remora" / "instances"
    eventually(lambda: list(kept.glob("*~returns/snapshot")))
    mesh.plane.kill()
    victim.kill()
    with load(lambda: caller.says(stub), threads=1) as each:
        again = mesh.echo("returns", options=("--version", "v2"), is_awaited=False)
        again.until("no control plane answers .* going by what it said")
        eventually(lambda: each.instances["returns"] > 10, message="the callers do not find it")
        mesh.start()
        mesh.until_healthy("stays", "returns")
        eventually(lambda: len(connected(mesh)) == 3)
        said = mesh.apply(SERVICE.format(name="after", version="v2"), "--wait").err
        assert "acknowledged by 3 of 3 nodes" in said
        assert caller.says(caller.stub("after:80")) == "returns"
    assert each.failed == {}
    assert again.err.count("registered as") == 1


@pytest.mark.slow
def test_who_dies_while_the_control_plane_is_gone_is_taken_out_after_lease_and_grace(mesh: Mesh) -> None:
    mesh.echo("stays")
    victim = mesh.echo("dies", options=("--ttl", f"{LEASE_S}s"))
    mesh.plane.kill()
    victim.kill()
    mesh.start()
    assert sorted(mesh.healthy()) == ["dies", "stays"]
    start = monotonic()
    eventually(lambda: mesh.healthy() == ["stays"], timeout_s=LEASE_S + GRACE_S + 3)
    assert monotonic() - start > GRACE_S


# -- etcd -----------------------------------------------------------------------------------------------


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd_cluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
def on_etcd(tmp_path: Path, etcd: EtcdCluster) -> Iterator[Mesh]:
    with running(tmp_path, etcd.target) as each:
        yield each


def test_etcd_that_is_away_at_the_start_is_said_in_a_sentence(mesh: Mesh, etcd: EtcdCluster) -> None:
    etcd.stop()
    result = mesh.remora("up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", etcd.target)
    assert (result.code, result.out) == (3, "")
    assert result.err.count("\n") == 1 and result.err.startswith("remora up: ") and "Traceback" not in result.err
    assert etcd.members[0].endpoint in result.err


@pytest.mark.parametrize("away_s", [pytest.param(6.0, id="6s"), pytest.param(30.0, id="30s", marks=pytest.mark.slow)])
def test_calls_go_on_while_etcd_is_gone_and_no_instance_is_lost(
    on_etcd: Mesh, etcd: EtcdCluster, away_s: float
) -> None:
    """Longer than a lease lasts. Writes are refused meanwhile, with a sentence; afterwards everything is as it should be."""
    mesh = on_etcd
    mesh.apply(SERVICE.format(name="before", version="remora"))
    with traffic(mesh) as loads:
        etcd.stop()
        gone_at = monotonic()
        refused = mesh.remora("apply", "-f", "-", text=SERVICE.format(name="meanwhile", version="remora"))
        assert (refused.code, refused.out) == (3, ""), refused
        assert refused.err.startswith("remora: ") and refused.err.count("\n") == 1 and "etcd" in refused.err
        # What is known is still shown.
        assert mesh.remora("get", "service", "before").code == 0
        assert mesh.remora("endpoints", "echo").code == 0
        eventually(lambda: monotonic() - gone_at > away_s, timeout_s=away_s + 5)
        assert sorted(mesh.healthy()) == ["echo-envoy", "echo-remora"]
        etcd.start()
        lost: list[list[str]] = []

        def writes_again() -> bool:
            now = sorted(mesh.healthy())
            if now != ["echo-envoy", "echo-remora"]:
                lost.append(now)
            return mesh.remora("apply", "-f", "-", text=SERVICE.format(name="after", version="envoy")).code == 0

        eventually(writes_again, timeout_s=20, message="writes are still refused")
        said = mesh.apply(SERVICE.format(name="later", version="remora"), "--wait").err
        assert "acknowledged by 4 of 4 nodes" in said
        caller = mesh.caller()
        assert caller.says(caller.stub("later:80")) == "echo-remora"
        assert caller.says(caller.stub("after:80")) == "echo-envoy"
        for each in loads:
            each.more(50)
    assert lost == []
    assert sorted(mesh.healthy()) == ["echo-envoy", "echo-remora"]
    for each in loads:
        assert each.failed == {}
    assert "Traceback" not in mesh.plane.err


def test_a_control_plane_takes_over_from_another_on_the_same_etcd(on_etcd: Mesh) -> None:
    """All truth is in the store: the one that is started again knows what the killed one knew."""
    on_etcd.apply(SERVICE.format(name="kept", version="v1"))
    on_etcd.echo("echo-1")
    on_etcd.plane.send(signal.SIGKILL)
    on_etcd.plane.wait()
    on_etcd.start()
    assert on_etcd.healthy() == ["echo-1"]
    assert on_etcd.remora("get", "service", "kept").code == 0
