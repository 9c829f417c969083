"""Clients that hang up before TLS has begun: each is a failed handshake at once, and nothing waits for it any longer."""

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.certificates import Authority
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import running
from tests.waiting import eventually_async

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
NO_LINGER = struct.pack("ii", 1, 0)
CLIENTS = 50


def secured(port: int, folder: Path) -> dict[str, Any]:
    chain, key = Authority().sign(dns=("shop.test",)).write(folder, "server")
    certificate = {"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}
    common = {"tls_certificates": [certificate]}
    listener = bootstraps.listener("main", port, "a")
    listener["filter_chains"][0]["transport_socket"] = {
        "name": "tls",
        "typed_config": {"@type": TLS, "common_tls_context": common},
    }
    return bootstraps.static([listener], [bootstraps.cluster("a", 1)])


def hang_up(port: int, how: str) -> None:
    client = socket.create_connection(("127.0.0.1", port))
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    elif how == "half a hello":
        client.send(b"\x16\x03\x01")
    client.close()


@pytest.mark.parametrize("how", ["close", "reset", "half a hello"])
def test_whoever_hangs_up_leaves_nothing_that_waits(how: str, tmp_path: Path) -> None:
    async def hang_ups() -> None:
        (port,) = free_ports(1)
        async with running(secured(port, tmp_path)) as proxy:
            before = asyncio.all_tasks()
            for _ in range(CLIENTS):
                hang_up(port, how)
                await asyncio.sleep(0)
            await eventually_async(lambda: proxy.worker.stats.handshakes_failed == CLIENTS)
            await eventually_async(lambda: asyncio.all_tasks() == before)
            assert not proxy.listeners["main"].accepted

    uvloop.run(hang_ups())  # the sidecar's own loop: others tell of a lost connection in another order
