"""A connection to an endpoint: TCP, TLS if the cluster says so, and only to whom the cluster means."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from sidecar.proxy import tls
from sidecar.proxy.config import ClusterConfig, EndpointConfig
from sidecar.proxy.tls import Secrets

KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6))
"""A peer that is gone without a word is found by the kernel after two minutes."""


def tune(transport: asyncio.BaseTransport) -> None:
    """Send at once, and find peers that are gone."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class ConnectError(Exception):
    """There is no connection; the text says to where and why."""


async def connect(
    cluster: ClusterConfig,
    endpoint: EndpointConfig,
    protocol: Callable[[], asyncio.BaseProtocol],
    secrets: Secrets,
    alpn: str = "h2",
) -> asyncio.Transport:
    """Connect `protocol` to an endpoint within the cluster's time. Raises ConnectError."""
    place = f"{endpoint.host}:{endpoint.port}"
    loop = asyncio.get_running_loop()
    config = tls.chosen(cluster, endpoint)
    try:
        if config is not None:
            config = tls.resolved(config, secrets)
        async with asyncio.timeout(cluster.connect_timeout_s):
            if config is None:
                transport, _ = await loop.create_connection(protocol, endpoint.host, endpoint.port)
                tune(transport)
                return transport
            transport, _ = await loop.create_connection(
                protocol,
                endpoint.host,
                endpoint.port,
                ssl=tls.client_context(tls.with_alpn(config, alpn)),
                server_hostname=config.sni,
            )
    except tls.TlsError as error:
        raise ConnectError(f"no connection to {place}: TLS: {error}") from None
    except TimeoutError:
        raise ConnectError(f"no connection to {place} within {cluster.connect_timeout_s:g} s") from None
    except OSError as error:
        raise ConnectError(f"no connection to {place}: {tls.describe(error)}") from None
    tune(transport)
    refused = tls.refusal(config, transport.get_extra_info("ssl_object"))
    if refused:
        transport.abort()
        raise ConnectError(f"no connection to {place}: TLS: {refused}")
    return transport


async def connect_http1(
    cluster: ClusterConfig, endpoint: EndpointConfig, core: asyncio.Protocol, secrets: Secrets
) -> None:
    """The same for an endpoint that speaks HTTP/1.1: `core` sees an HTTP/2 server. Raises ConnectError."""
    # Imported here: a sidecar without HTTP/1.1 does not pay for h11.
    from sidecar.proxy.http1.upstream import Http1Server

    server = Http1Server()
    await connect(cluster, endpoint, lambda: cast(asyncio.BaseProtocol, server), secrets, alpn="http/1.1")
    server.serve(core)


async def settled(cluster: ClusterConfig, endpoint: EndpointConfig, settings: asyncio.Future[None]) -> None:
    """Wait for an endpoint's SETTINGS: one that is about to end may take a connection that nobody will ever read. Raises ConnectError."""
    place = f"{endpoint.host}:{endpoint.port}"
    try:
        async with asyncio.timeout(cluster.connect_timeout_s):
            await settings
    except TimeoutError:
        raise ConnectError(f"no SETTINGS from {place} within {cluster.connect_timeout_s:g} s") from None
    except OSError as error:
        raise ConnectError(f"{place} ended the connection before it said anything: {error}") from None
