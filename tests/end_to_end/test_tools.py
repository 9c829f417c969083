"""The tools that everybody has: grpcurl against the control plane and through sidecars, a real Prometheus on both."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from tests.end_to_end.programs.schema import messages
from tests.mesh import Mesh, Result, environment
from tests.ports import free_ports
from tests.tools import need
from tests.waiting import eventually

SCRAPE: Final = "250ms"


# -- grpcurl --------------------------------------------------------------------------------------------


def grpcurl(*words: str) -> Result:
    """Run grpcurl without TLS."""
    done = subprocess.run(
        [need("grpcurl"), "-plaintext", *words], capture_output=True, text=True, timeout=60, env=environment()
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_grpcurl_lists_describes_and_calls_the_control_plane(shared: Mesh) -> None:
    services = grpcurl(shared.server, "list").out.split()
    assert set(services) >= {
        "remora.mesh.v1.Resources",
        "remora.mesh.v1.Registry",
        "remora.mesh.v1.Mesh",
        "envoy.service.discovery.v3.AggregatedDiscoveryService",
        "grpc.health.v1.Health",
    }
    for service in services:
        assert f"{service} is a service:" in grpcurl(shared.server, "describe", service).out
    for symbol, said in {
        "remora.mesh.v1.Mesh.Nodes": "rpc Nodes ( .remora.mesh.v1.NodesRequest )",
        "remora.mesh.v1.Resource": "message Resource {",
        "remora.mesh.v1.Instance.address": "string address = 4",
        "remora.mesh.v1.Health": "enum Health {",
    }.items():
        described = grpcurl(shared.server, "describe", symbol)
        assert described.code == 0 and said in described.out, (symbol, described)
    assert grpcurl(shared.server, "describe", "remora.mesh.v1.Mesh.Nothing").code != 0

    health = grpcurl(shared.server, "grpc.health.v1.Health/Check")
    assert json.loads(health.out) == {"status": "SERVING"}
    resource = {"metadata": {"name": "by-grpcurl"}, "service": {"ports": [{"port": 50051}]}}
    request = json.dumps({"resources": [resource]})
    applied = grpcurl("-d", request, shared.server, "remora.mesh.v1.Resources/Apply")
    assert json.loads(applied.out)["applied"][0]["outcome"] == "CREATED"
    assert "Service default/by-grpcurl unchanged" in shared.remora(
        "apply", "-f", "-", text=shared.remora("get", "service", "by-grpcurl", "-o", "yaml").out
    ).out  # fmt: skip
    refused = grpcurl("-d", '{"kind": "Service", "name": "Not_A_Name"}', shared.server, "remora.mesh.v1.Resources/Get")
    assert "Code: InvalidArgument" in refused.err and "has a form that is not allowed" in refused.err
    gone = grpcurl("-d", '{"kind": "Service", "name": "by-grpcurl"}', shared.server, "remora.mesh.v1.Resources/Delete")
    assert gone.code == 0


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_grpcurl_lists_describes_and_calls_a_service_through_its_sidecar(guests: Mesh, engine: str) -> None:
    name = f"told-{engine}"
    guests.echo("told-1", name, engine=engine)
    (instance,) = guests.instances(name)
    address = f"{instance.address}:{instance.port}"  # where the sidecar takes calls for the program
    assert "echo.v1.Echo" in grpcurl(address, "list").out.split()
    assert "rpc Unary ( .echo.v1.Note ) returns ( .echo.v1.Note );" in grpcurl(address, "describe", "echo.v1.Echo").out
    answer = grpcurl("-d", '{"text": "hi"}', address, "echo.v1.Echo/Unary")
    assert json.loads(answer.out) == {"text": "hi", "instance": "told-1"}
    failed = grpcurl("-d", '{"code": 9, "message": "not now", "reason": "LATE"}', address, "echo.v1.Echo/Fail")
    assert "Code: FailedPrecondition" in failed.err and '"reason": "LATE"' in failed.err


def test_a_go_program_calls_by_name_with_the_variable_that_go_reads(guests: Mesh) -> None:
    """grpcurl is one. Go looks at HTTPS_PROXY; what to put there, `remora run` has told."""
    guests.echo("gone-1", "gone")
    script = f"HTTPS_PROXY=$grpc_proxy {need('grpcurl')} -plaintext -d '{{}}' gone.default:80 echo.v1.Echo/Unary"
    process = guests.run("go-caller", "sh", "-c", script)
    assert process.wait() == 0, process.err
    assert json.loads(process.out) == {"instance": "gone-1"}


# -- Prometheus -----------------------------------------------------------------------------------------


class Prometheus:
    """A running server."""

    def __init__(self, address: str) -> None:
        self._address = address

    def _get(self, path: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self._address}{path}", timeout=5) as response:
                return json.loads(response.read())["data"]
        except OSError:
            return None

    def is_up(self, count: int) -> bool:
        """True if that many targets have been scraped, all well."""
        found = self._get("/api/v1/targets?state=active") or {"activeTargets": []}
        return [each["health"] for each in found["activeTargets"]] == ["up"] * count

    def query(self, text: str) -> dict[tuple[str, ...], float]:
        """The vector that a query gives, by label values in order of label name."""
        found = self._get("/api/v1/query?" + urllib.parse.urlencode({"query": text})) or {"result": []}
        return {
            tuple(value for _, value in sorted(each["metric"].items())): float(each["value"][1])
            for each in found["result"]
        }


@contextmanager
def prometheus(directory: Path, targets: list[dict[str, Any]]) -> Iterator[Prometheus]:
    """A real Prometheus that scrapes the targets of a file."""
    (directory / "targets.json").write_text(json.dumps(targets))
    config = {
        "global": {"scrape_interval": SCRAPE},
        "scrape_configs": [{"job_name": "mesh", "file_sd_configs": [{"files": [str(directory / "targets.json")]}]}],
    }
    (directory / "prometheus.yaml").write_text(json.dumps(config))
    (port,) = free_ports(1)
    command = [
        need("prometheus"), f"--config.file={directory / 'prometheus.yaml'}", f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
    try:
        yield Prometheus(f"127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


def test_prometheus_counts_exactly_the_calls_that_were_made(mesh: Mesh, tmp_path: Path) -> None:
    for number in (1, 2):
        mesh.echo(f"echo-{number}", options=("--version", f"v{number}"), is_awaited=False)
    mesh.until_healthy("echo-1", "echo-2")
    callers = [mesh.caller(), mesh.caller(service="other")]
    good, failed = 120, 30
    for caller in callers:
        stub = caller.stub("echo:80")
        eventually(lambda stub=stub: stub.Unary(messages.Note(), timeout=5, wait_for_ready=True) is not None)  # type: ignore[misc]
        for _ in range(good - 1):
            stub.Unary(messages.Note(), timeout=5)
        for _ in range(failed):
            with pytest.raises(grpc.RpcError):
                stub.Fail(messages.Failure(code=5, message="no"), timeout=5)

    nodes = json.loads(mesh.remora("status", "-o", "json").out)["nodes"]
    targets = [{"targets": [node["adminAddress"]], "labels": {"node": node["id"]}} for node in nodes]
    targets.append({"targets": [mesh.http], "labels": {"node": "control-plane"}})
    with prometheus(tmp_path, targets) as server:
        eventually(lambda: server.is_up(5), timeout_s=30, message="not all targets are up")
        calls = 'remora_requests_total{direction="outbound",service="echo.default"'
        total = f"sum({calls}}})"
        eventually(lambda: server.query(total) == {(): 2 * (good + failed)}, message=str(server.query(total)))
        assert server.query(f"sum by (grpc_status) ({calls}}})") == {("OK",): 2 * good, ("NOT_FOUND",): 2 * failed}
        by_version = server.query(f"sum by (version) ({calls}}})")
        assert by_version == {("v1",): good + failed, ("v2",): good + failed}
        # What the callers' sidecars count on the way out, the callees' count on the way in.
        inbound = 'sum(remora_requests_total{direction="inbound",node=~"echo.default~.*"})'
        assert server.query(inbound) == {(): 2 * (good + failed)}
        durations = 'sum(remora_request_duration_seconds_count{direction="outbound",service="echo.default"})'
        assert server.query(durations) == {(): 2 * (good + failed)}
        # More calls, and exactly those are added.
        stub = callers[0].stub("echo:80")
        for _ in range(17):
            stub.Unary(messages.Note(), timeout=5)
        eventually(lambda: server.query(total) == {(): 2 * (good + failed) + 17})
        assert server.query("sum(remora_control_plane_instances)") == {(): 2}
        assert server.query('remora_control_plane_nodes{engine="remora"}') != {}
        assert server.query("sum(remora_control_plane_nodes)") == {(): 4}
        assert server.query("sum(remora_control_plane_connected)") == {(): 4}
