"""A sidecar that starts without a control plane goes by what it kept, and comes back to the control plane when there is one."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sidecar.proxy.proxy import Proxy
from sidecar.xds import client as client_module
from sidecar.xds.bootstrap import parse
from sidecar.xds.client import AdsClient
from sidecar.xds.keeper import Keeper
from tests.ports import free_ports
from tests.sidecar.running import backends, call, dial, origin, running
from tests.sidecar.xds.ads import Ads, bootstrap, eds_cluster, endpoints, listener, routes
from tests.sidecar.xds.test_client import configured
from tests.waiting import eventually_async


@dataclass
class Kept:
    """A sidecar that keeps its configuration."""

    proxy: Proxy
    ready: asyncio.Event
    keeper: Keeper


@asynccontextmanager
async def sidecar(document: dict[str, Any], path: Path) -> AsyncIterator[Kept]:
    """As a process that starts, and ends when the context does."""
    async with running(document) as proxy:
        parsed, stats, ready = parse(document), proxy.worker.stats, asyncio.Event()
        keeper = Keeper(path, parsed.node, lambda: bool(stats.control_plane_connected), pause_s=0.0)
        task = asyncio.create_task(AdsClient(parsed, proxy, stats, ready, keeper).run())
        try:
            yield Kept(proxy, ready, keeper)
        finally:
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def kept(path: Path, ads: Ads, port: int, target: int) -> dict[str, Any]:
    """A file as a sidecar left it that had all it needs; its bootstrap."""
    document = bootstrap(ads.port)
    async with sidecar(document, path) as it:
        await configured(ads, port, target)
        await asyncio.wait_for(it.ready.wait(), 5)
    return document


@asynccontextmanager
async def control_plane() -> AsyncIterator[Ads]:
    ads = Ads()
    await ads.start()
    try:
        yield ads
    finally:
        await ads.stop()


async def test_it_serves_with_the_control_plane_dead_and_converges_to_other_content(tmp_path: Path) -> None:
    [port] = free_ports(1)
    async with control_plane() as ads, backends("a", "b") as [a, b]:
        document = await kept(tmp_path / "kept", ads, port, a.port)
        await ads.stop()
        async with sidecar(document, tmp_path / "kept") as it:
            await asyncio.wait_for(it.ready.wait(), 5)
            assert origin(await call(await dial(port))) == "a"
            assert it.keeper.shown()["isInForce"]
            await ads.start(ads.port)
            again = [await ads.request(kind) for kind in ("cds", "lds", "eds", "rds")]
            # Another control plane may mean something else by the same number: everything is asked for anew.
            assert [request.version_info for request in again] == ["", "", "", ""]
            assert [tuple(request.resource_names) for request in again] == [(), (), ("stock",), ("out",)]
            assert it.keeper.shown()["isInForce"]
            await configured(ads, port, b.port)
            assert origin(await call(await dial(port))) == "b"
            assert not it.keeper.shown()["isInForce"]
        # What it was told is what it has kept.
        await ads.stop()
        async with sidecar(document, tmp_path / "kept") as it:
            await asyncio.wait_for(it.ready.wait(), 5)
            assert origin(await call(await dial(port))) == "b"


async def test_a_control_plane_that_says_nothing_is_waited_for_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "KEPT_AFTER_S", 0.3)
    [port] = free_ports(1)
    async with control_plane() as ads, backends("a", "b") as [a, b]:
        document = await kept(tmp_path / "kept", ads, port, a.port)
        async with sidecar(document, tmp_path / "kept") as it:
            await eventually_async(lambda: ads.streams == 2)
            await asyncio.wait_for(it.ready.wait(), 5)
            assert origin(await call(await dial(port))) == "a"
            await configured(ads, port, b.port)  # on the same stream
            assert origin(await call(await dial(port))) == "b"


async def test_a_control_plane_that_answers_goes_before_what_is_kept(tmp_path: Path) -> None:
    [port] = free_ports(1)
    async with control_plane() as ads, backends("a", "b") as [a, b]:
        document = await kept(tmp_path / "kept", ads, port, a.port)
        async with sidecar(document, tmp_path / "kept") as it:
            await eventually_async(lambda: ads.streams == 2)
            await configured(ads, port, b.port)
            await asyncio.wait_for(it.ready.wait(), 5)
            assert origin(await call(await dial(port))) == "b"
            assert not it.keeper.is_in_force


async def test_inbound_calls_are_not_taken_by_what_is_kept_before_the_program_listens(tmp_path: Path) -> None:
    """Callers may still believe that the instance is there: a connection that is refused sends them to another one."""
    inbound, outbound, program = free_ports(3)
    document = bootstrap(0)
    document["node"]["metadata"] = {"app_address": "127.0.0.1", "app_port": program}
    async with control_plane() as ads, backends("a") as [a]:
        document["static_resources"]["clusters"][0]["load_assignment"]["endpoints"] = endpoints("", ads.port)[
            "endpoints"
        ]
        async with sidecar(document, tmp_path / "kept") as it:
            await ads.request("cds")
            ads.send("cds", "1", eds_cluster("stock"))
            await ads.request("eds", names=("stock",))
            ads.send("eds", "1", endpoints("stock", a.port))
            await ads.request("lds")
            in_ = {**listener("in", inbound, "out"), "traffic_direction": "INBOUND"}
            ads.send("lds", "1", in_, listener("out", outbound, "out"))
            await ads.request("rds", names=("out",))
            await ads.request("rds", ads.send("rds", "1", routes("out", "stock")))
            assert origin(await call(await dial(inbound))) == "a", "told by a control plane, it is there at once"
        await ads.stop()
        async with sidecar(document, tmp_path / "kept") as it:
            await asyncio.wait_for(it.ready.wait(), 5)
            assert origin(await call(await dial(outbound))) == "a", "the program may call while it starts"
            with pytest.raises(ConnectionRefusedError):
                await dial(inbound)
            server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", program)
            await eventually_async(lambda: "in" in it.proxy.listeners)
            assert origin(await call(await dial(inbound))) == "a"
            server.close()


@pytest.mark.parametrize("fault", ["damaged", "foreign", "unsupported"])
async def test_a_file_that_cannot_be_used_is_named_and_nothing_breaks(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    [port] = free_ports(1)
    path = tmp_path / "kept"
    async with control_plane() as ads, backends("a") as [a]:
        document = await kept(path, ads, port, a.port)
        await ads.stop()
        if fault == "damaged":
            path.write_bytes(path.read_bytes()[:-7])
        elif fault == "foreign":
            document["node"]["metadata"] = {"inbound_port": 1}
        else:
            async with sidecar(document, path) as it:
                await asyncio.wait_for(it.ready.wait(), 5)
                await ads.start(ads.port)
                await configured(ads, port, a.port)
            _spoil(path, parse(document).node)
            await ads.stop()
        said = {"damaged": "bytes where", "foreign": "of another node", "unsupported": "CLUSTER_PROVIDED"}[fault]
        caplog.clear()
        with caplog.at_level(logging.ERROR, "remora.xds"):
            async with sidecar(document, path) as it:
                await eventually_async(lambda: said in caplog.text)
                assert f"the kept configuration {path} is not used" in caplog.text
                assert not it.ready.is_set() and it.keeper.saved_at is None
                await ads.start(ads.port)
                await configured(ads, port, a.port)
                assert origin(await call(await dial(port))) == "a"
                await eventually_async(lambda: it.keeper.saved_at is not None)
        assert caplog.text.count("is not used") == 1
        await ads.stop()
        async with sidecar(document, path) as it:
            await asyncio.wait_for(it.ready.wait(), 5)


def _spoil(path: Path, node: bytes) -> None:
    """Put a cluster into the file that this sidecar cannot carry out, as one of another release might."""
    from dataclasses import replace

    from google.protobuf import any_pb2, json_format

    from sidecar.xds.discovery import CLUSTER
    from sidecar.xds.snapshot import pack, unpack, write

    item = any_pb2.Any()
    json_format.ParseDict({"@type": CLUSTER, **eds_cluster("stock", lb_policy="CLUSTER_PROVIDED")}, item)
    found = unpack(path.read_bytes(), node)
    spoiled = [replace(part, resources=(item.value,)) if part.type_url == CLUSTER else part for part in found.parts]
    write(path, pack(node, replace(found, parts=tuple(spoiled))))


async def test_a_disk_that_is_full_is_said_once_and_traffic_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [port] = free_ports(1)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory is needed")
    async with (
        control_plane() as ads,
        backends("a", "b") as [a, b],
        sidecar(bootstrap(ads.port), blocked / "kept") as it,
    ):
        await configured(ads, port, a.port)
        await eventually_async(lambda: it.keeper.failures == 1)
        await ads.request("eds", ads.send("eds", "2", endpoints("stock", b.port)))
        await eventually_async(lambda: it.keeper.failures == 2)
        assert origin(await call(await dial(port))) == "b"
        assert it.keeper.shown()["savedAt"] is None
    assert caplog.text.count("cannot be kept in") == 1
    assert json.dumps(it.keeper.shown())


async def test_of_several_control_planes_any_will_do(tmp_path: Path) -> None:
    """Those that are dead or silent are passed by; a stream that breaks is opened to another."""
    [port, dead] = free_ports(2)
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    where = silent.sockets[0].getsockname()[1]
    async with control_plane() as one, control_plane() as two, backends("a") as [a]:
        document = bootstrap(one.port)
        assigned = document["static_resources"]["clusters"][0]["load_assignment"]
        assigned["endpoints"] = endpoints("", dead, where, one.port, two.port)["endpoints"]
        async with sidecar(document, tmp_path / "kept") as it:
            await eventually_async(lambda: one.streams + two.streams == 1)
            first, second = (one, two) if one.streams else (two, one)
            await configured(first, port, a.port)
            await asyncio.wait_for(it.ready.wait(), 5)
            await first.stop()
            again = await second.request("eds")
            assert (again.version_info, tuple(again.resource_names)) == ("1", ("stock",))
            assert origin(await call(await dial(port))) == "a"
            await first.start(first.port)
    silent.close()
