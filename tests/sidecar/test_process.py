"""A sidecar as a process: how it begins, what it says when it cannot, how it ends."""

import asyncio
import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.differential import engines
from tests.differential.engines import command
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, dial, origin, over, start
from tests.waiting import eventually_async


def fails(folder: Path, bootstrap: Any) -> str:
    """What a sidecar says that ends at once, with the exit code of bad input."""
    path = folder / "bootstrap.json"
    path.write_text(bootstrap if isinstance(bootstrap, str) else json.dumps(bootstrap))
    result = subprocess.run(command("remora", path), capture_output=True, text=True, timeout=30, cwd=folder)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def _is_live(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return bool(answer.read() == b"LIVE\n")
    except HTTPError:
        return False


@pytest.mark.parametrize("where", ["listener", "admin"])
def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path, where: str) -> None:
    [free] = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listener = bootstraps.listener("main", port if where == "listener" else free, "a")
        admin = {"address": bootstraps.address(port if where == "admin" else free)}
        text = fails(tmp_path, bootstraps.static([listener], [bootstraps.cluster("a", 1)], admin=admin))
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in text


def test_a_field_that_is_not_supported_is_said_with_its_place_and_the_file(tmp_path: Path) -> None:
    bootstrap = bootstraps.static([], [bootstraps.cluster("a", 1, dns_lookup_family="V4_ONLY")])
    text = fails(tmp_path, bootstrap)
    assert str(tmp_path / "bootstrap.json") in text
    assert "static_resources.clusters[0].dns_lookup_family: this field is not supported by this sidecar" in text


def test_a_file_that_is_no_bootstrap_is_said(tmp_path: Path) -> None:
    assert "is no mapping" in fails(tmp_path, "[]")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_calls_finish_and_then_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    port, admin = free_ports(2)
    async with backends("a") as [a]:
        a.begin([["hold", "ok"]])
        bootstrap = bootstraps.static(
            [bootstraps.listener("main", port, "a")],
            [bootstraps.cluster("a", a.port)],
            admin={"address": bootstraps.address(admin)},
        )
        engine = engines.start("remora", bootstrap, [port, admin], tmp_path)
        try:
            await eventually_async(lambda: asyncio.to_thread(_is_live, admin))
            client = await dial(port)
            seen = start(client)
            await arrived(a, 1)
            engine.process.send_signal(number)
            assert await client.until(lambda: client.goaway is not None, 5)
            with pytest.raises(ConnectionRefusedError):
                await dial(port)
            a.release()
            assert origin(await over(client, seen)) == "a"
            await eventually_async(lambda: not engine.is_running)
            assert engine.process.returncode == 0
            assert engine.log.read_text() == ""
        finally:
            engine.stop()


async def test_without_calls_it_ends_at_once(tmp_path: Path) -> None:
    [port] = free_ports(1)
    bootstrap = bootstraps.static([bootstraps.listener("main", port, "a")], [bootstraps.cluster("a", 1)])
    engine = engines.start("remora", bootstrap, [port], tmp_path)
    try:
        client = await dial(port)
        engine.process.terminate()
        await eventually_async(lambda: not engine.is_running, timeout_s=5)
        assert engine.process.returncode == 0
        assert await client.until(lambda: client.is_closed, 5)
    finally:
        engine.stop()
