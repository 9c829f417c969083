"""A connection to an endpoint: TCP, TLS if the cluster says so, and only to whom the cluster means."""

import asyncio
from collections.abc import Callable

from sidecar.proxy import tls
from sidecar.proxy.config import ClusterConfig, EndpointConfig


class ConnectError(Exception):
    """There is no connection; the text says to where and why."""


async def connect(
    cluster: ClusterConfig, endpoint: EndpointConfig, protocol: Callable[[], asyncio.BaseProtocol], alpn: str = "h2"
) -> asyncio.Transport:
    """Connect `protocol` to an endpoint within the cluster's time. Raises ConnectError."""
    place = f"{endpoint.host}:{endpoint.port}"
    loop = asyncio.get_running_loop()
    config = cluster.tls
    try:
        async with asyncio.timeout(cluster.connect_timeout_s):
            if config is None:
                transport, _ = await loop.create_connection(protocol, endpoint.host, endpoint.port)
                return transport
            transport, _ = await loop.create_connection(
                protocol,
                endpoint.host,
                endpoint.port,
                ssl=tls.client_context(tls.with_alpn(config, alpn)),
                server_hostname=config.sni,
            )
    except TimeoutError:
        raise ConnectError(f"no connection to {place} within {cluster.connect_timeout_s:g} s") from None
    except OSError as error:
        raise ConnectError(f"no connection to {place}: {tls.describe(error)}") from None
    refused = tls.refusal(config, transport.get_extra_info("ssl_object"))
    if refused:
        transport.abort()
        raise ConnectError(f"no connection to {place}: TLS: {refused}")
    return transport
