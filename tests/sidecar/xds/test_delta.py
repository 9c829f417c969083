"""The sidecar as a delta ADS client: what it asks for, says that it has, and makes of what it is told."""

from tests.ports import free_ports
from tests.sidecar.running import backends, call, dial, origin
from tests.sidecar.xds.ads import Ads, eds_cluster, endpoints, listener, routes
from tests.sidecar.xds.test_client import node
from tests.waiting import eventually_async

DELTA = "DELTA_GRPC"


async def configured(ads: Ads, port: int, target: int) -> None:
    """Everything that a sidecar needs: calls to `port` reach `target`."""
    await ads.delta_request("cds")
    ads.tell("cds", ("stock", "c1", eds_cluster("stock")))
    await ads.delta_request("eds", subscribe=["stock"])
    ads.tell("eds", ("stock", "e1", endpoints("stock", target)))
    await ads.delta_request("lds")
    ads.tell("lds", ("out", "l1", listener("out", port, "out")))
    await ads.delta_request("rds", subscribe=["out"])
    await ads.delta_request("rds", ads.tell("rds", ("out", "r1", routes("out", "stock"))))


async def test_clusters_and_listeners_are_asked_for_by_the_wildcard_and_only_the_first_request_says_who_asks() -> None:
    async with node(DELTA) as it:
        await it.ads.delta_request("lds")
        first, second = it.ads.requests
        assert {first.type_url.rpartition(".")[2], second.type_url.rpartition(".")[2]} == {"Cluster", "Listener"}
        assert (first.node.id, first.node.user_agent_name) == ("orders-1", "remora")
        assert not second.HasField("node")
        assert not first.resource_names_subscribe and not first.initial_resource_versions


async def test_names_are_added_and_taken_back_as_clusters_come_and_go() -> None:
    async with node(DELTA) as it:
        await it.ads.delta_request("cds")
        it.ads.tell("cds", ("stock", "1", eds_cluster("stock")), ("rest", "1", eds_cluster("rest")))
        await it.ads.delta_request("eds", subscribe=["rest", "stock"])
        it.ads.tell("cds", ("more", "1", eds_cluster("more")))
        await it.ads.delta_request("eds", subscribe=["more"], unsubscribe=[])
        assert sorted(it.proxy.clusters)[-3:] == ["more", "rest", "stock"], "what is not mentioned stays"
        await it.ads.delta_request("cds", it.ads.tell("cds", gone=("rest", "never")))
        await it.ads.delta_request("eds", subscribe=[], unsubscribe=["rest"])
        assert "rest" not in it.proxy.clusters and "stock" in it.proxy.clusters


async def test_what_is_refused_is_named_and_the_last_good_stays_in_force() -> None:
    async with node(DELTA) as it:
        await it.ads.delta_request("cds")
        await it.ads.delta_request("cds", it.ads.tell("cds", ("stock", "1", eds_cluster("stock"))))
        bad = eds_cluster("bad", lb_policy="CLUSTER_PROVIDED")
        request = await it.ads.delta_request("cds", it.ads.tell("cds", ("bad", "1", bad), gone=("stock",)))
        assert "lb_policy" in request.error_detail.message
        assert "stock" in it.proxy.clusters and "bad" not in it.proxy.clusters


async def test_a_node_that_comes_back_says_what_it_has_and_serves_on_when_it_is_sent_nothing() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b], node(DELTA) as it:
        await configured(it.ads, port, a.port)
        await eventually_async(it.ready.is_set)
        await it.ads.stop()
        await eventually_async(lambda: it.proxy.worker.stats.control_plane_connected == 0)
        await it.ads.start(it.ads.port)
        await eventually_async(lambda: len(it.ads.requests) == 4)
        said = {
            request.type_url.rpartition(".")[2]: (
                list(request.resource_names_subscribe),
                dict(request.initial_resource_versions),
            )
            for request in it.ads.requests
        }
        assert said == {
            "Cluster": ([], {"stock": "c1"}),
            "Listener": ([], {"out": "l1"}),
            "ClusterLoadAssignment": (["stock"], {"stock": "e1"}),
            "RouteConfiguration": (["out"], {"out": "r1"}),
        }
        assert origin(await call(await dial(port))) == "a"
        await it.ads.delta_request("eds", it.ads.tell("eds", ("stock", "e2", endpoints("stock", b.port))))
        assert origin(await call(await dial(port))) == "b"


async def test_endpoints_that_are_said_to_be_gone_stay_as_long_as_a_cluster_names_them() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a], node(DELTA) as it:
        await configured(it.ads, port, a.port)
        await it.ads.delta_request("eds", it.ads.tell("eds", gone=("stock",)))
        assert origin(await call(await dial(port))) == "a"
