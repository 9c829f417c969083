"""The ADS client against a control plane that answers as it is told: what is asked, acknowledged, refused, kept."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from sidecar.proxy.proxy import Proxy
from sidecar.xds.bootstrap import parse
from sidecar.xds.client import AdsClient
from tests.ports import free_ports
from tests.sidecar.running import backends, call, dial, origin, running
from tests.sidecar.xds.ads import Ads, bootstrap, eds_cluster, endpoints, listener, routes
from tests.waiting import eventually_async


@dataclass
class Node:
    """A sidecar with its control plane."""

    ads: Ads
    proxy: Proxy
    ready: asyncio.Event


@asynccontextmanager
async def node(api_type: str = "GRPC", **fields: Any) -> AsyncIterator[Node]:
    """`fields` are more of the bootstrap; clusters among them are static ones."""
    ads = Ads()
    await ads.start()
    document = bootstrap(ads.port, api_type)
    document["static_resources"]["clusters"] += fields.pop("clusters", [])
    document |= fields
    async with running(document) as proxy:
        ready = asyncio.Event()
        task = asyncio.create_task(AdsClient(parse(document), proxy, proxy.worker.stats, ready).run())
        try:
            yield Node(ads, proxy, ready)
        finally:
            assert not task.done(), task.exception()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await ads.stop()


async def configured(ads: Ads, port: int, target: int) -> None:
    """Everything that a sidecar needs: calls to `port` reach `target`."""
    await ads.request("cds")
    ads.send("cds", "1", eds_cluster("stock"))
    await ads.request("eds", names=("stock",))
    ads.send("eds", "1", endpoints("stock", target))
    await ads.request("lds")
    ads.send("lds", "1", listener("out", port, "out"))
    await ads.request("rds", names=("out",))
    await ads.request("rds", ads.send("rds", "1", routes("out", "stock")))


async def test_clusters_and_listeners_are_asked_for_first_and_only_the_first_request_says_who_asks() -> None:
    async with node() as it:
        await it.ads.request("lds")
        first, second = it.ads.requests
        assert {first.type_url.rpartition(".")[2], second.type_url.rpartition(".")[2]} == {"Cluster", "Listener"}
        assert (first.node.id, first.node.cluster, first.node.user_agent_name) == ("orders-1", "orders", "remora")
        assert not second.HasField("node")
        assert not first.resource_names and not second.resource_names
        assert (first.version_info, first.response_nonce) == ("", "")


async def test_what_is_accepted_is_acknowledged_with_version_and_nonce() -> None:
    async with node() as it:
        await it.ads.request("cds")
        nonce = it.ads.send("cds", "7", eds_cluster("stock"))
        request = await it.ads.request("cds", nonce)
        assert request.version_info == "7"
        assert not request.HasField("error_detail")
        assert "stock" in it.proxy.clusters


async def test_a_node_is_ready_when_it_has_all_that_it_needs_and_then_calls_flow() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], node() as it:
        await it.ads.request("cds")
        it.ads.send("cds", "1", eds_cluster("stock"))
        await it.ads.request("eds", names=("stock",))
        await it.ads.request("lds")
        it.ads.send("lds", "1", listener("out", port, "out"))
        await it.ads.request("rds", names=("out",))
        assert (await call(await dial(port))).header("grpc-message") == (
            'the routes "out" have not come from the control plane yet (flag NR)'
        )
        await it.ads.request("rds", it.ads.send("rds", "1", routes("out", "stock")))
        assert not it.ready.is_set()
        assert "it has no endpoints" in ((await call(await dial(port))).header("grpc-message") or "")
        it.ads.send("eds", "1", endpoints("stock", a.port))
        await asyncio.wait_for(it.ready.wait(), 5)
        assert origin(await call(await dial(port))) == "a"


async def test_a_node_asks_for_those_like_it_and_does_not_wait_for_them() -> None:
    [port] = free_ports(1)
    local = {
        "name": "local",
        "type": "EDS",
        "eds_cluster_config": {"service_name": "orders", "eds_config": {"ads": {}}},
    }
    fields: dict[str, Any] = {
        "cluster_manager": {"local_cluster_name": "local"},
        "node": {"id": "orders-1", "locality": {"zone": "here"}},
    }
    async with backends("a", "b", "c", "d") as servers, node(clusters=[local], **fields) as it:
        zoned = {"zone_aware_lb_config": {"min_cluster_size": 2}}
        await it.ads.request("cds")
        it.ads.send("cds", "1", eds_cluster("stock", common_lb_config=zoned))
        await it.ads.request("eds", names=("orders", "stock"))
        await it.ads.request("lds")
        it.ads.send("lds", "1", listener("out", port, "out"))
        await it.ads.request("rds", names=("out",))
        await it.ads.request("rds", it.ads.send("rds", "1", routes("out", "stock")))
        parts = [
            endpoints("stock", servers[0].port, servers[1].port),
            endpoints("stock", servers[2].port, servers[3].port),
        ]
        stock = {"cluster_name": "stock", "endpoints": [part["endpoints"][0] for part in parts]}
        for zone, group in zip(("here", "there"), stock["endpoints"], strict=True):
            group["locality"] = {"zone": zone}
        it.ads.send("eds", "1", stock)
        await asyncio.wait_for(it.ready.wait(), 5)
        client = await dial(port)
        assert {origin(await call(client)) for _ in range(40)} == set("abcd"), "where callers are is not known yet"
        own = {"cluster_name": "orders", "endpoints": [endpoints("x", 1)["endpoints"][0] for _ in range(2)]}
        for zone, group in zip(("here", "there"), own["endpoints"], strict=True):
            group["locality"] = {"zone": zone}
            group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = len(zone)
        await it.ads.request("eds", it.ads.send("eds", "2", own), names=("orders", "stock"))
        assert {origin(await call(client)) for _ in range(40)} == set("ab")


async def test_what_is_refused_is_named_and_the_last_good_stays_in_force() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], node() as it:
        await configured(it.ads, port, a.port)
        bad = (eds_cluster("stock", lb_policy="CLUSTER_PROVIDED"), eds_cluster("more", dns_lookup_family="V4_ONLY"))
        nonce = it.ads.send("cds", "2", *bad)
        request = await it.ads.request("cds", nonce)
        assert request.version_info == "1"
        assert request.error_detail.code == 3
        assert "cluster[stock].lb_policy: CLUSTER_PROVIDED" in request.error_detail.message
        assert "cluster[more].dns_lookup_family: this field is not supported" in request.error_detail.message
        assert it.proxy.worker.stats.config_rejected == 1
        assert set(it.proxy.clusters) == {"control-plane", "stock"}
        assert origin(await call(await dial(port))) == "a"
        nonce = it.ads.send("cds", "3", eds_cluster("stock"), eds_cluster("more"))
        assert (await it.ads.request("cds", nonce)).version_info == "3"


@pytest.mark.parametrize("kind", ["cds", "eds", "lds", "rds"])
async def test_bytes_that_are_no_resource_are_refused(kind: str) -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], node() as it:
        await configured(it.ads, port, a.port)
        request = await it.ads.request(kind, it.ads.send(kind, "2", {"broken": True}))
        assert request.version_info == "1"
        assert "resources[0]: the bytes are no envoy.config." in request.error_detail.message
        assert origin(await call(await dial(port))) == "a"


async def test_a_resource_that_is_given_twice_is_refused() -> None:
    async with node() as it:
        await it.ads.request("cds")
        request = await it.ads.request("cds", it.ads.send("cds", "1", eds_cluster("stock"), eds_cluster("stock")))
        assert '"stock" is given twice' in request.error_detail.message


async def test_endpoints_may_come_in_parts_and_what_is_not_mentioned_stays() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], node() as it:
        await configured(it.ads, port, a.port)
        it.ads.send("cds", "2", eds_cluster("stock"), eds_cluster("more"))
        await it.ads.request("eds", "nonce-2", names=("more", "stock"))
        await it.ads.request("eds", it.ads.send("eds", "2", endpoints("more", b.port)), names=("more", "stock"))
        assert origin(await call(await dial(port))) == "a"
        await it.ads.request("rds", it.ads.send("rds", "2", routes("out", "more")))
        assert origin(await call(await dial(port))) == "b"


async def test_a_cluster_that_is_not_mentioned_is_gone_and_its_endpoints_are_not_asked_for_any_more() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], node() as it:
        await configured(it.ads, port, a.port)
        it.ads.send("cds", "2", eds_cluster("more"))
        await it.ads.request("eds", "nonce-2", names=("more",))
        assert set(it.proxy.clusters) == {"control-plane", "more"}
        assert (await call(await dial(port))).header("grpc-message") == 'cluster "stock" is not known here (flag NC)'


async def test_endpoints_that_nobody_asked_for_are_acknowledged_and_not_kept() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], node() as it:
        await configured(it.ads, port, a.port)
        request = await it.ads.request("eds", it.ads.send("eds", "2", endpoints("stranger", 1)))
        assert request.version_info == "2"
        assert [assigned.name for assigned in it.proxy.configuration.endpoints] == ["stock"]
        assert origin(await call(await dial(port))) == "a"


async def test_a_listener_whose_address_changes_moves() -> None:
    port, elsewhere = free_ports(2)
    async with backends("a") as [a], node() as it:
        await configured(it.ads, port, a.port)
        client = await dial(port)
        assert origin(await call(client)) == "a"
        await it.ads.request("lds", it.ads.send("lds", "2", listener("out", elsewhere, "out")))
        assert origin(await call(await dial(elsewhere))) == "a"
        assert await client.until(lambda: client.is_closed, 5)
        with pytest.raises(ConnectionRefusedError):
            await dial(port)


async def test_a_listener_whose_address_is_taken_is_refused_and_the_old_one_goes_on() -> None:
    port, taken = free_ports(2)
    blocker = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", taken)
    async with backends("a") as [a], node() as it:
        await configured(it.ads, port, a.port)
        request = await it.ads.request("lds", it.ads.send("lds", "2", listener("out", taken, "out")))
        assert request.version_info == "1"
        assert f'listener "out" cannot listen on 127.0.0.1:{taken}' in request.error_detail.message
        assert origin(await call(await dial(port))) == "a"
    blocker.close()


async def test_what_a_refused_listener_would_have_made_superfluous_is_still_there() -> None:
    port, taken = free_ports(2)
    blocker = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", taken)
    async with backends("a", "b") as [a, b], node() as it:
        await configured(it.ads, port, a.port)
        await it.ads.request("lds", it.ads.send("lds", "2", listener("out", taken, "other")))
        await it.ads.request("eds", it.ads.send("eds", "2", endpoints("stock", b.port)))
        assert origin(await call(await dial(port))) == "b"
    blocker.close()


async def test_traffic_goes_on_without_a_control_plane_and_the_node_comes_back_to_it() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], node() as it:
        await configured(it.ads, port, a.port)
        stats = it.proxy.worker.stats
        assert stats.control_plane_connected == 1
        await it.ads.stop()
        await eventually_async(lambda: stats.control_plane_connected == 0)
        assert origin(await call(await dial(port))) == "a"
        await it.ads.start(it.ads.port)
        again = [await it.ads.request(kind) for kind in ("cds", "lds", "eds", "rds")]
        assert [request.version_info for request in again] == ["1", "1", "1", "1"]
        assert [tuple(request.resource_names) for request in again] == [(), (), ("stock",), ("out",)]
        assert it.ads.requests[0].node.id == "orders-1"
        assert it.ads.streams == 2
        await it.ads.request("eds", it.ads.send("eds", "2", endpoints("stock", b.port)))
        assert origin(await call(await dial(port))) == "b"
        assert stats.control_plane_connected == 1


async def test_a_type_that_is_not_known_is_left_alone() -> None:
    async with node() as it:
        await it.ads.request("cds")
        it.ads.send("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "1")
        nonce = it.ads.send("cds", "1", eds_cluster("stock"))
        assert (await it.ads.request("cds", nonce)).version_info == "1"


async def test_a_cluster_that_is_sent_again_as_it_was_keeps_its_connections() -> None:
    """The same resource, sent again with another version, is the same: nothing is made anew."""
    [port] = free_ports(1)
    async with backends("a") as [a], node() as it:
        await configured(it.ads, port, a.port)
        await call(await dial(port))
        before = it.proxy.clusters["stock"]
        await it.ads.request("cds", it.ads.send("cds", "2", eds_cluster("stock")))
        assert it.proxy.clusters["stock"] is before
        assert origin(await call(await dial(port))) == "a"
        assert len(a.connections) == 1
