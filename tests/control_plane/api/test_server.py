"""A control-plane process that starts, or says in one sentence why it does not."""

import asyncio
import socket
import sqlite3
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest

from control_plane.api.server import CannotListen, running
from control_plane.store.embedded import FILE, FORMAT, EmbeddedStore
from proto.mesh.v1 import api_pb2, api_pb2_grpc
from tests.control_plane.plane import LOOPBACK, NO_PROXY, Node, plane_on

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def up(*words: str) -> tuple[int, str]:
    """Exit code and everything that a start that must fail says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "remora", "up", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode()


async def test_why_an_address_cannot_be_listened_on(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(LOOPBACK)
        taken.listen()
        port = taken.getsockname()[1]
        for listen, reason in (
            (f"127.0.0.1:{port}", "address already in use"),
            ("192.0.2.1:15010", "cannot assign requested address"),
            ("no.such.host.invalid:15010", ""),
        ):
            code, said = await up("--listen", listen, "--http", "127.0.0.1:0", "--store", str(tmp_path))
            assert code == 2
            assert said.startswith(f"remora up: cannot listen on {listen}: {reason}")
            assert said.count("\n") == 1, "one sentence, and nothing of gRPC's"


async def test_a_store_of_a_later_release_is_refused_and_not_touched(tmp_path: Path) -> None:
    await (await EmbeddedStore.open(tmp_path)).close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("UPDATE meta SET value = ? WHERE name = 'format'", (FORMAT + 1,))
    database.close()
    before = (tmp_path / FILE).read_bytes()
    code, said = await up("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", str(tmp_path))
    assert code == 3
    assert f"was written by a newer release (format {FORMAT + 1}, this one reads {FORMAT})" in said
    assert said.startswith("remora up: store ") and said.count("\n") == 1
    assert (tmp_path / FILE).read_bytes() == before


async def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(LOOPBACK)
        taken.listen()
        for listen, http in ((taken.getsockname(), LOOPBACK), (LOOPBACK, taken.getsockname())):
            with pytest.raises(CannotListen):
                async with running(listen, str(tmp_path), http):
                    pytest.fail("it must not start")
    async with plane_on(tmp_path) as plane:  # neither the store nor a port is held
        await plane.resources.List(api_pb2.ListRequest())


async def test_it_listens_on_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with (
        running(("[::1]", 0), str(tmp_path), ("[::1]", 0)) as plane,
        grpc.aio.insecure_channel(f"[::1]:{plane.port}", options=NO_PROXY) as channel,
    ):
        await api_pb2_grpc.ResourcesStub(channel).List(api_pb2.ListRequest())

        def healthz() -> bytes:
            with urllib.request.urlopen(f"http://[::1]:{plane.http_port}/healthz", timeout=10) as answer:
                return bytes(answer.read())

        assert await asyncio.to_thread(healthz) == b"ok\n"


async def test_it_stops_although_nodes_and_watches_are_connected(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        async with plane_on(tmp_path) as plane:
            node = await Node(plane, "one").follow()
            watch = plane.resources.Watch(api_pb2.WatchRequest())
            await watch.read()
        await node.close()
