"""A configuration is swapped at once: new calls go by the new one, running calls finish, sockets and connections stay."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sidecar.proxy.config import ChainMatch, EndpointConfig, FilterChain, LoadAssignment
from sidecar.proxy.listener import ListenError
from sidecar.xds.bootstrap import parse
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.sidecar.running import arrived, backends, call, dial, origin, over, running, start
from tests.waiting import eventually_async

HOLD = ["hold", "ok"]
LIMIT = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"


def bootstrap(port: int, target: str, *clusters: dict[str, Any], **options: Any) -> dict[str, Any]:
    return bootstraps.static([bootstraps.listener("main", port, target, **options)], list(clusters))


def limit(name: str, tokens: int) -> dict[str, Any]:
    always = {"default_value": {"numerator": 100}}
    bucket = {"max_tokens": tokens, "tokens_per_fill": tokens, "fill_interval": "3600s"}
    fields = {"stat_prefix": name, "token_bucket": bucket, "filter_enabled": always, "filter_enforced": always}
    return {"http_filters": [{"name": "limit", "typed_config": {"@type": LIMIT, **fields}}, bootstraps.ROUTER]}


async def test_new_calls_go_the_new_way_and_running_ones_finish_the_old_way() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b]:
        clusters = [bootstraps.cluster("a", a.port), bootstraps.cluster("b", b.port)]
        a.begin([HOLD])
        async with running(bootstrap(port, "a", *clusters)) as proxy:
            client = await dial(port)
            old = start(client)
            await arrived(a, 1)
            await proxy.apply(parse(bootstrap(port, "b", *clusters)).configuration)
            assert origin(await call(client)) == "b"
            assert not old.is_over
            a.release()
            assert origin(await over(client, old)) == "a"
            assert client.goaway is None


async def test_a_cluster_that_did_not_change_keeps_its_connection() -> None:
    [port] = free_ports(1)
    async with backends("a", "b") as [a, b]:
        clusters = [bootstraps.cluster("a", a.port), bootstraps.cluster("b", b.port)]
        async with running(bootstrap(port, "a", *clusters)) as proxy:
            client = await dial(port)
            await call(client)
            for target in ("b", "a", "b", "a"):
                await proxy.apply(parse(bootstrap(port, target, *clusters)).configuration)
                assert origin(await call(client)) == target
            assert len(a.connections) == len(b.connections) == 1


async def test_a_cluster_with_other_settings_is_a_new_one_and_the_old_one_finishes() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        a.begin([HOLD, "ok"])
        async with running(bootstrap(port, "a", bootstraps.cluster("a", a.port))) as proxy:
            client = await dial(port)
            old = start(client)
            await arrived(a, 1)
            changed = bootstraps.cluster("a", a.port, connect_timeout="2s")
            await proxy.apply(parse(bootstrap(port, "a", changed)).configuration)
            assert origin(await call(client)) == "a"
            assert [conn.is_closed for conn in a.connections] == [False, False]
            a.release()
            assert (await over(client, old)).header("grpc-status") == "0"
            await eventually_async(lambda: [conn.is_closed for conn in a.connections] == [True, False])


async def test_an_endpoint_that_is_taken_out_finishes_its_calls_and_loses_its_connection() -> None:
    [port] = free_ports(1)
    cluster = bootstraps.cluster("both", type="EDS", eds_cluster_config={"eds_config": {"ads": {}}})
    del cluster["load_assignment"]
    async with backends("a", "b") as [a, b], running(bootstrap(port, "both", cluster)) as proxy:
        a.begin([HOLD])
        client = await dial(port)
        known = proxy.configuration
        await proxy.apply(replace(known, endpoints=(LoadAssignment("both", (EndpointConfig("127.0.0.1", a.port),)),)))
        old = start(client)
        await arrived(a, 1)
        await proxy.apply(replace(known, endpoints=(LoadAssignment("both", (EndpointConfig("127.0.0.1", b.port),)),)))
        assert {origin(await call(client)) for _ in range(4)} == {"b"}
        assert not a.connections[0].is_closed
        a.release()
        assert origin(await over(client, old)) == "a"
        await eventually_async(lambda: a.connections[0].is_closed)


async def test_a_listener_that_moves_serves_at_the_new_place_and_drains_at_the_old() -> None:
    port, elsewhere = free_ports(2)
    async with backends("a") as [a]:
        cluster = bootstraps.cluster("a", a.port)
        a.begin([HOLD, "ok"])
        async with running(bootstrap(port, "a", cluster)) as proxy:
            client = await dial(port)
            old = start(client)
            await arrived(a, 1)
            await proxy.apply(parse(bootstrap(elsewhere, "a", cluster)).configuration)
            with pytest.raises(ConnectionRefusedError):
                await dial(port)
            assert origin(await call(await dial(elsewhere))) == "a"
            assert await client.until(lambda: client.goaway is not None, 5)
            a.release()
            assert origin(await over(client, old)) == "a"
            assert await client.until(lambda: client.is_closed, 5)


async def test_a_listener_that_is_taken_out_drains() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        cluster = bootstraps.cluster("a", a.port)
        async with running(bootstrap(port, "a", cluster)) as proxy:
            client = await dial(port)
            await call(client)
            await proxy.apply(parse(bootstraps.static([], [cluster])).configuration)
            assert await client.until(lambda: client.is_closed, 5)
            assert client.goaway is not None and client.goaway[1] == 0
            with pytest.raises(ConnectionRefusedError):
                await dial(port)


async def test_an_address_that_cannot_be_had_changes_nothing() -> None:
    port, fine, taken = free_ports(3)
    blocker = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", taken)
    async with backends("a", "b") as [a, b]:
        clusters = [bootstraps.cluster("a", a.port), bootstraps.cluster("b", b.port)]
        async with running(bootstrap(port, "a", *clusters)) as proxy:
            client = await dial(port)
            before = proxy.configuration
            listeners = [
                bootstraps.listener("main", port, "b"),
                bootstraps.listener("fine", fine, "b"),
                bootstraps.listener("taken", taken, "b"),
            ]
            with pytest.raises(ListenError, match=f'"taken" cannot listen on 127.0.0.1:{taken}: .*in use'):
                await proxy.apply(parse(bootstraps.static(listeners, clusters)).configuration)
            assert proxy.configuration is before
            assert origin(await call(client)) == "a"
            with pytest.raises(ConnectionRefusedError):
                await dial(fine)
    blocker.close()


async def test_a_route_to_a_cluster_that_is_not_there_yet_works_once_it_is() -> None:
    [port] = free_ports(1)
    without = bootstrap(port, "a")
    manager = without["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["validate_clusters"] = False
    async with backends("a") as [a], running(without) as proxy:
        client = await dial(port)
        refused = await call(client)
        assert refused.header("grpc-status") == "14"
        assert refused.header("grpc-message") == 'cluster "a" is not known here (flag NC)'
        await proxy.apply(parse(bootstrap(port, "a", bootstraps.cluster("a", a.port))).configuration)
        assert origin(await call(client)) == "a"


async def test_a_rate_limit_that_did_not_change_keeps_its_tokens_and_another_starts_full() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        cluster = bootstraps.cluster("a", a.port)
        async with running(bootstrap(port, "a", cluster, **limit("one", 2))) as proxy:
            client = await dial(port)
            assert [origin(await call(client)) for _ in range(3)] == ["a", "a", None]
            await proxy.apply(
                parse(bootstrap(port, "a", cluster, bootstraps.cluster("b", 1), **limit("one", 2))).configuration
            )
            assert origin(await call(client)) is None
            await proxy.apply(parse(bootstrap(port, "a", cluster, **limit("one", 1))).configuration)
            assert [origin(await call(client)) for _ in range(2)] == ["a", None]


async def test_a_refusal_says_who_refused_and_when_to_come_again() -> None:
    [port] = free_ports(1)
    async with (
        backends("a") as [a],
        running(bootstrap(port, "a", bootstraps.cluster("a", a.port), **limit("orders", 1))),
    ):
        client = await dial(port)
        await call(client)
        message = (await call(client)).header("grpc-message") or ""
        assert message.startswith(
            'rate limit "orders": 1 calls per 3600 s at this instance are used up; try again in 3'
        )
        assert message.endswith("(flag RL)")


async def test_draining_lets_calls_finish_and_takes_no_new_connections() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        a.begin([HOLD])
        async with running(bootstrap(port, "a", bootstraps.cluster("a", a.port))) as proxy:
            client = await dial(port)
            running_call = start(client)
            await arrived(a, 1)
            draining = asyncio.create_task(proxy.drain(5))
            assert await client.until(lambda: client.goaway is not None, 5)
            with pytest.raises(ConnectionRefusedError):
                await dial(port)
            a.release()
            assert origin(await over(client, running_call)) == "a"
            assert await draining is True
            assert await client.until(lambda: client.is_closed, 5)


async def test_draining_says_so_when_the_time_is_over_first() -> None:
    [port] = free_ports(1)
    async with backends("a") as [a]:
        a.begin(["hold"])
        async with running(bootstrap(port, "a", bootstraps.cluster("a", a.port))) as proxy:
            client = await dial(port)
            start(client)
            await arrived(a, 1)
            assert await proxy.drain(0.05) is False


async def test_a_limit_is_for_all_chains_of_a_port_that_have_the_same_routes() -> None:
    """As for TLS and plain text on one port, where whoever may not come twice one way must not come the other way either."""
    [port] = free_ports(1)
    async with backends("a") as [a]:
        clusters = [bootstraps.cluster("a", a.port)]
        inline = parse(bootstrap(port, "a", *clusters, **limit("once", 1))).configuration
        [listener] = inline.listeners
        manager = listener.chains[0].manager
        assert manager is not None and manager.routes is not None
        by_rds = replace(manager, routes=None, rds_name=manager.routes.name)
        chains = tuple(
            FilterChain(name, ChainMatch(applications=(name,)), manager=by_rds) for name in ("h2c", "http/1.1")
        )
        both = replace(listener, chains=chains, inspects_http=True)
        async with running(bootstraps.static([], clusters)) as proxy:
            for _ in range(2):  # a configuration that comes again gives no new tokens
                await proxy.apply(replace(inline, listeners=(both,), route_tables=(manager.routes,)))
                client = await dial(port)
                seen = await call(client)
                client.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
                writer.close()
            assert origin(seen) is None and len(a.requests) == 1
