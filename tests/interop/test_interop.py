"""gRPC's own interop cases, every client against every server, through two sidecars: in plain text, in TLS, and in TLS that the sidecars do not open.

grpc-go's client and server are its own; those for grpcio and @grpc/grpc-js, which come in no package, do what the descriptions say.
"""

from pathlib import Path

import pytest

from tests.differential import engines
from tests.interop import matrix
from tests.interop.conftest import Ways
from tests.interop.matrix import CLIENTS, SERVERS, WAYS, Programs, cases_of
from tests.ports import free_ports
from tests.sidecar import bootstraps

CELLS = [
    pytest.param(way, client, server, case, id=f"{way}: {client} to {server}: {case}")
    for way in WAYS
    for client in CLIENTS
    for server in SERVERS
    for case in cases_of(client, server)
]


@pytest.mark.parametrize(("way", "client", "server", "case"), CELLS)
def test_a_case_ends_well_through_two_sidecars(ways: Ways, way: str, client: str, server: str, case: str) -> None:
    assert ways.of(way).run(client, server, case) == ""


@pytest.mark.parametrize("way", WAYS)
def test_it_was_the_sidecars_that_carried_the_calls(ways: Ways, way: str) -> None:
    programs = ways.of(way)
    assert programs.run("python", "go", "large_unary") == ""
    for name in ("in", "out"):
        if way == "opaque":
            assert programs.metric(name, "remora_tcp_connections_total") > 0
        else:
            assert programs.metric(name, "remora_requests_total", grpc_status="OK") > 0


@pytest.mark.parametrize("way", WAYS)
def test_the_sidecars_had_nothing_to_say(ways: Ways, way: str) -> None:
    for engine in ways.of(way).engines:
        assert engine.is_running
        assert engine.log.read_text() == ""


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_says_so_if_a_case_fails(client: str, tmp_path: Path) -> None:
    [port] = free_ports(1)
    bootstrap = bootstraps.static([bootstraps.listener("out", port, "nobody")], [bootstraps.cluster("nobody")])
    engine = engines.start("remora", bootstrap, [port], tmp_path)
    try:
        programs = Programs("plain", matrix.Papers(tmp_path), {"go": port}, {}, [])
        assert "no healthy upstream" in programs.run(client, "go", "large_unary")
    finally:
        engine.stop()
