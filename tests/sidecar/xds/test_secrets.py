"""Secrets by SDS: nobody gets in before they are there, and a new one costs nothing but what it is for."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from cryptography import x509

from remora.agent.secrets import Papers, SecretsServer
from sidecar.proxy.proxy import Proxy
from sidecar.proxy.worker import Worker
from sidecar.telemetry.stats import Stats
from sidecar.xds.bootstrap import parse
from sidecar.xds.secrets import follow_static
from sidecar.xds.supported import ConfigError
from tests.certificates import Authority
from tests.differential.backend import Backend
from tests.ports import free_ports
from tests.sidecar.running import backends, call, dial
from tests.waiting import eventually_async

pytestmark = pytest.mark.asyncio(loop_scope="session")

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ANN = "spiffe://shop.test/ns/default/sa/ann"


def papers(authority: Authority, uri: str = ANN) -> Papers:
    leaf = authority.sign(uri=(uri,))
    return Papers(leaf.chain, leaf.key, authority.pem)


def _sds(name: str) -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "identity"}}
    return {
        "name": name,
        "sds_config": {
            "api_config_source": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
        },
    }


def _listener(name: str, port: int, cluster: str, socket: dict[str, Any] | None) -> dict[str, Any]:
    manager = {
        "@type": HCM,
        "stat_prefix": name,
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if socket is not None:
        chain["transport_socket"] = socket
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }


def _cluster(name: str, address: dict[str, Any], socket: dict[str, Any] | None = None) -> dict[str, Any]:
    made = {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": {
            OPTIONS: {
                "@type": f"type.googleapis.com/{OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    return made if socket is None else {**made, "transport_socket": socket}


def _at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def document(front: int, secure: int, backend: int, socket: Path) -> dict[str, Any]:
    """A call comes in plain text, goes over mutual TLS to the same process, and on to the backend in plain text."""
    shown = {"tls_certificate_sds_secret_configs": [_sds("identity")], "alpn_protocols": ["h2"]}
    down = {
        "@type": TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {**shown, "validation_context_sds_secret_config": _sds("trust")},
    }
    wanted = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": ANN}}]}
    up = {
        "@type": TLS + "UpstreamTlsContext",
        "common_tls_context": {
            **shown,
            "combined_validation_context": {
                "default_validation_context": wanted,
                "validation_context_sds_secret_config": _sds("trust"),
            },
        },
    }
    return {
        "static_resources": {
            "listeners": [
                _listener("front", front, "self", None),
                _listener("secure", secure, "backend", {"name": "tls", "typed_config": down}),
            ],
            "clusters": [
                _cluster("self", _at(secure), {"name": "tls", "typed_config": up}),
                _cluster("backend", _at(backend)),
                _cluster("identity", {"pipe": {"path": str(socket)}}),
            ],
        }
    }


@dataclass
class Rig:
    """A proxy that takes its secrets from a server on a Unix socket, as beside an agent."""

    proxy: Proxy
    secrets: SecretsServer
    front: int
    secure: int
    backend: Backend
    is_ready: asyncio.Event

    async def says(self) -> str:
        """A call by a new client: its status, and what is said."""
        client = await dial(self.front)
        seen = await call(client)
        client.close()
        return unquote(f"{seen.header('grpc-status')} {seen.header('grpc-message')}")

    async def serial(self) -> int:
        """Of the certificate that the secure listener shows to a new client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", self.secure, ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return x509.load_der_x509_certificate(shown).serial_number


@asynccontextmanager
async def rig(directory: Path) -> AsyncIterator[Rig]:
    secrets = SecretsServer(directory / "s")
    await secrets.start()
    front, secure = free_ports(2)
    async with backends("a") as [backend]:
        bootstrap = parse(document(front, secure, backend.port, directory / "s"))
        stats, is_ready = Stats(), asyncio.Event()
        proxy = Proxy(Worker(asyncio.get_running_loop(), stats), bootstrap.limits)
        await proxy.apply(bootstrap.configuration)
        following = asyncio.create_task(follow_static(bootstrap, proxy, stats, is_ready))
        try:
            yield Rig(proxy, secrets, front, secure, backend, is_ready)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            proxy.close()
            await secrets.stop()


async def test_before_the_secrets_are_there_nobody_gets_in_and_nothing_goes_out(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        assert not each.is_ready.is_set()
        assert 'the secret "identity" from "identity" has not come yet' in await each.says()
        reader, writer = await asyncio.open_connection("127.0.0.1", each.secure)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert await reader.read() == b"", "closed, not answered in plain text"
        writer.close()
        each.secrets.put(papers(Authority()))
        await asyncio.wait_for(each.is_ready.wait(), 10)
        await eventually_async(lambda: _is_good(each))


async def _is_good(each: Rig) -> bool:
    return (await each.says()).startswith("0 ")


async def test_a_new_certificate_is_for_new_connections_and_costs_nothing_else(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        authority = Authority()
        each.secrets.put(papers(authority))
        await asyncio.wait_for(each.is_ready.wait(), 10)
        await eventually_async(lambda: _is_good(each))
        before, clusters = await each.serial(), dict(each.proxy.clusters)
        [connection] = each.proxy.clusters["self"].open_connections()
        version = each.secrets.put(papers(authority))
        await asyncio.wait_for(each.secrets.in_force(version), 10)
        assert await each.serial() != before
        assert each.proxy.clusters == clusters, "the same clusters, with all that they have counted and learned"
        assert each.proxy.clusters["self"].open_connections() == [connection]
        assert await _is_good(each)


async def test_a_secret_that_cannot_be_used_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        authority = Authority()
        good = papers(authority)
        each.secrets.put(good)
        await asyncio.wait_for(each.is_ready.wait(), 10)
        before = await each.serial()
        each.secrets.put(Papers(good.chain, papers(authority).key, good.trusted))
        await eventually_async(lambda: "secret[identity]: certificate and key: " in each.secrets.refused)
        assert "PRIVATE" not in each.secrets.refused
        assert await each.serial() == before


async def test_roots_change_for_new_connections(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        first, second = Authority("first"), Authority("second")
        each.secrets.put(papers(first))
        await asyncio.wait_for(each.is_ready.wait(), 10)
        await eventually_async(lambda: _is_good(each))
        shown = papers(first)
        version = each.secrets.put(Papers(shown.chain, shown.key, second.pem))
        await asyncio.wait_for(each.secrets.in_force(version), 10)
        for connection in each.proxy.clusters["self"].open_connections():
            connection.retire()
        await eventually_async(lambda: _is_refused(each, "the certificate is not accepted"))


async def _is_refused(each: Rig, why: str) -> bool:
    return why in await each.says()


async def test_another_identity_than_the_wanted_one_gets_no_call(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        each.secrets.put(papers(Authority(), ANN.replace("ann", "bob")))
        await asyncio.wait_for(each.is_ready.wait(), 10)
        said = await each.says()
        assert "its certificate is for URI:spiffe://shop.test/ns/default/sa/bob" in said
        assert not each.backend.requests


async def test_inbound_connections_know_whose_certificate_it_is(tmp_path: Path) -> None:
    async with rig(tmp_path) as each:
        each.secrets.put(papers(Authority()))
        await asyncio.wait_for(each.is_ready.wait(), 10)
        await eventually_async(lambda: _is_good(each))
        [downstream] = each.proxy.listeners["secure"].downstreams
        assert (downstream.identity, downstream.security) == (ANN, "mutual_tls")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": ""}, "the secret's name is needed"),
        ({"sds_config": {"ads": {}}}, "api_config_source of api_type GRPC"),
        ({"sds_config": None}, "is not among static_resources.secrets"),
    ],
)
async def test_a_reference_that_leads_nowhere_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    made = document(1, 2, 3, tmp_path / "s")
    context = made["static_resources"]["listeners"][1]["filter_chains"][0]["transport_socket"]["typed_config"]
    [reference] = context["common_tls_context"]["tls_certificate_sds_secret_configs"]
    reference.update(change)
    if change.get("sds_config", "") is None:
        del reference["sds_config"]
    with pytest.raises(ConfigError, match=why):
        parse(made)


async def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    made = document(1, 2, 3, tmp_path / "s")
    made["static_resources"]["clusters"].pop()
    with pytest.raises(ConfigError, match='there is no static cluster "identity"'):
        parse(made)
