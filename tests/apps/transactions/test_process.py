"""The coordinator as a program."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from proto.transactions.v1 import coordinator_pb2 as pb
from proto.transactions.v1 import coordinator_pb2_grpc as pb_grpc
from tests.ports import free_ports
from tests.tools import ROOT

COMMAND = [sys.executable, "-m", "apps.transactions.coordinator"]


def test_it_serves_and_stops_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    http = free_ports(1)[0]
    arguments = ["--listen", "127.0.0.1:0", "--log", f"sqlite:///{tmp_path / 'log.db'}", "--name", "one"]
    for run in range(2):
        process = subprocess.Popen(
            [*COMMAND, *arguments, "--http", str(http)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.fullmatch(r"coordinator one: listening on (127\.0\.0\.1:\d+)\n", said)
            assert found is not None, said
            with grpc.insecure_channel(found.group(1)) as channel:
                asked = health_pb2.HealthCheckRequest(service="transactions.v1.Coordinator")
                assert health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5).status == 1
                stub = pb_grpc.CoordinatorStub(channel)
                if run == 0:
                    stub.Begin(pb.BeginRequest(gid="g", mode=pb.TCC), timeout=5)
                else:
                    aborted = stub.Abort(pb.AbortRequest(gid="g", wait_s=5), timeout=10)
                    assert aborted.state == pb.FAILED
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/metrics", timeout=5) as answer:
                assert b"transactions_dead_letters 0.0" in answer.read()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            if process.stderr is not None:
                process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--log", "nonsense"], "--log: Could not parse SQLAlchemy URL"),
        (["--log", "sqlite:////no/such/place/log.db"], "unable to open database file"),
        (["--listen", "192.0.2.1:1"], "--listen 192.0.2.1:1 is taken, or may not be used"),
    ],
)
def test_what_it_cannot_use_it_says(arguments: list[str], text: str, tmp_path: Path) -> None:
    log = ["--log", f"sqlite:///{tmp_path / 'log.db'}"]
    done = subprocess.run([*COMMAND, *log, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
