"""Load by tools that are not ours, through two sidecars: every call succeeds, and both sidecars have counted just those."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.interop import matrix
from tests.interop.conftest import Ways
from tests.interop.matrix import NAME, Programs
from tests.mesh import environment
from tests.tools import need
from tests.waiting import eventually

CALLS = 2_000
PATIENCE_S = 60.0
METHOD = "grpc.testing.TestService"


def counted(programs: Programs) -> list[dict[str, float]]:
    """Of each sidecar: calls, calls that went well, latencies."""
    return [
        {
            "calls": programs.metric(name, "remora_requests_total"),
            "well": programs.metric(name, "remora_requests_total", grpc_status="OK"),
            "latencies": programs.metric(name, "remora_request_duration_seconds_count"),
        }
        for name in ("out", "in")
    ]


def all_are_counted(programs: Programs, before: list[dict[str, float]], calls: int) -> None:
    """A sidecar has counted a call when its answer has left, so the last ones may come a moment later."""
    wanted = [{key: value + calls for key, value in each.items()} for each in before]
    eventually(lambda: counted(programs) == wanted, timeout_s=10, message=f"{before} and {calls}: {counted(programs)}")


@pytest.mark.parametrize("call", ["EmptyCall", "UnaryCall", "StreamingOutputCall", "FullDuplexCall"])
@pytest.mark.parametrize("way", ["plain", "tls"])
def test_ghz_sees_every_call_succeed_and_both_sidecars_count_them(ways: Ways, way: str, call: str) -> None:
    programs = ways.of(way)
    message = {
        "EmptyCall": {},
        "UnaryCall": {"response_size": 1000, "payload": {"body": "eA=="}},
        "StreamingOutputCall": {"response_parameters": [{"size": 100}] * 5},
        "FullDuplexCall": {"response_parameters": [{"size": 100}]},
    }[call]
    security = ["--insecure"]
    if way == "tls":
        security = [f"--cacert={programs.papers.authority}", f"--cname={NAME}"]
    before = counted(programs)
    command = [
        need("ghz"), f"--protoset={matrix.schema()}", f"--call={METHOD}.{call}", f"--data={json.dumps(message)}", *security,
        f"--total={CALLS}", "--concurrency=40", "--connections=4", "--timeout=20s", "--format=json",
        f"127.0.0.1:{programs.ports['go']}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment())
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["statusCodeDistribution"] == {"OK": CALLS}
    assert report["errorDistribution"] == {}
    all_are_counted(programs, before, CALLS)


@pytest.mark.parametrize("way", ["plain", "tls"])
def test_h2load_sees_every_call_succeed_and_both_sidecars_count_them(ways: Ways, way: str, tmp_path: Path) -> None:
    programs = ways.of(way)
    body = tmp_path / "message"
    body.write_bytes(bytes(5))  # an empty message of gRPC
    scheme = "https" if way == "tls" else "http"
    before = counted(programs)
    command = [
        need("h2load"), f"--requests={CALLS}", "--clients=8", "--max-concurrent-streams=20", f"--data={body}",
        "--header=content-type: application/grpc", "--header=te: trailers",
        f"{scheme}://127.0.0.1:{programs.ports['go']}/{METHOD}/EmptyCall",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment())
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"(\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout
    )
    assert found is not None, done.stdout
    assert [int(each) for each in found.groups()] == [CALLS, CALLS, CALLS, CALLS, 0, 0]
    all_are_counted(programs, before, CALLS)
