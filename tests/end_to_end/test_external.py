"""A server that knows nothing of the mesh and stands outside of it, called by each data plane under a name of the mesh."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.end_to_end.test_proxyless import client
from tests.mesh import PROGRAMS, Mesh
from tests.ports import free_ports
from tests.waiting import eventually

BANK = """
apiVersion: remora.dev/v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{port: 443}}], external: {where}}}
"""


@pytest.fixture(scope="module")
def outside(shared: Mesh) -> Iterator[int]:
    """The port of a plain server."""
    (port,) = free_ports(1)
    env = shared.environment(PORT=str(port), INSTANCE="bank")
    with (shared.directory / "bank.out").open("w+") as out:
        program = subprocess.Popen([sys.executable, str(PROGRAMS / "server.py")], stdout=out, stderr=out, env=env)
        try:
            eventually(lambda: "listening" in (shared.directory / "bank.out").read_text())
            yield port
        finally:
            program.kill()
            program.wait()


@pytest.mark.parametrize("kind", ["dns", "addresses"])
def test_what_stands_outside_is_called_by_every_data_plane(guests: Mesh, outside: int, kind: str) -> None:
    where = {
        "dns": f"{{dns: localhost, port: {outside}}}",
        "addresses": f"{{addresses: [{{address: 127.0.0.1, port: {outside}}}]}}",
    }
    name = f"bank-{kind}"
    guests.apply(BANK.format(name=name, where=where[kind]), "--wait")
    eventually(lambda: guests.healthy(name) == [f"external-127.0.0.1-{outside}"], message="no endpoint")
    for engine in ("remora", "envoy"):
        caller = guests.caller(engine)
        assert caller.says(caller.stub(f"{name}:443"), wait_for_ready=True) == "bank"
    with client(guests, f"outsider-{kind}") as proxyless:
        assert proxyless.good(f"xds:///{name}.default:443", 3) == {"bank": 3}
    shown = guests.remora("endpoints", name)
    assert f"127.0.0.1:{outside}" in shown.out
    guests.remora("delete", "service", name, "--wait")
    eventually(lambda: not guests.instances(name), message="the endpoint stays")
