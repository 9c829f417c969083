"""The SDS client: keeps the secrets that listeners and clusters refer to as their sources say (tls.v3.Secret).

A source is on this machine (the agent's Unix socket), so a process has its secrets as long as whoever made them lives; they are kept
nowhere else. What came last stays in force until something better comes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from sidecar.proxy.config import SecretRef, TlsCertificate
from sidecar.proxy.proxy import Proxy
from sidecar.telemetry.stats import Stats
from sidecar.xds import tls
from sidecar.xds.bootstrap import Bootstrap
from sidecar.xds.supported import ConfigError, unpack

log = logging.getLogger("remora.xds")

SECRET: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 2.0
OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.use_local_subchannel_pool", 1),
)
_METHOD: Final = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"


class _Source:
    """One source: what is wanted of it, and the stream."""

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target
        self.wanted: tuple[str, ...] = ()
        self.version = ""
        self.nonce = ""
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None


class SecretsClient:
    """Follows every source from which something is wanted; `on_change` puts `values` in force and is awaited before they are acknowledged."""

    def __init__(
        self, sources: Mapping[str, str], node: bytes, stats: Stats, on_change: Callable[[], Awaitable[None]]
    ) -> None:
        self.values: dict[SecretRef, TlsCertificate | bytes] = {}
        self._refs: frozenset[SecretRef] = frozenset()
        self._sources = {name: _Source(name, target) for name, target in sources.items() if target}
        self._node = base_pb2.Node.FromString(node)
        self._stats = stats
        self._on_change = on_change
        self._chance = Random()

    @property
    def has_all(self) -> bool:
        """True once everything that is wanted has come."""
        return self._refs <= self.values.keys()

    def want(self, refs: frozenset[SecretRef]) -> None:
        """Follow these from now on, and no others."""
        refs = frozenset(ref for ref in refs if ref.source)
        if refs == self._refs:
            return
        self._refs = refs
        self.values = {ref: value for ref, value in self.values.items() if ref in refs}
        for source in self._sources.values():
            names = tuple(sorted(ref.name for ref in refs if ref.source == source.name))
            if names == source.wanted:
                continue
            source.wanted = names
            if not names:
                if source.task is not None:
                    source.task.cancel()
                    source.task = None
            elif source.task is None:
                source.task = asyncio.get_running_loop().create_task(self._run(source))
            else:
                self._ask(source)

    async def close(self) -> None:
        """Follow nothing any more."""
        tasks = [source.task for source in self._sources.values() if source.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, source: _Source) -> None:
        failures = 0
        while True:
            heard = [0]
            try:
                async with grpc.aio.insecure_channel(source.target, options=list(OPTIONS)) as channel:
                    await self._follow(source, channel, heard)
            except grpc.aio.AioRpcError as error:
                log.warning("secrets from %s: %s %s", source.name, error.code().name, error.details())
            failures = 0 if heard[0] else failures + 1
            wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures, 10))
            await asyncio.sleep(wait * (0.5 + self._chance.random()))

    async def _follow(self, source: _Source, channel: grpc.aio.Channel, heard: list[int]) -> None:
        """One stream, until it ends."""
        source.requests = asyncio.Queue()
        source.version = source.nonce = ""
        call = channel.stream_stream(
            _METHOD,
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )(_outgoing(source.requests))
        self._ask(source)
        async for response in call:
            heard[0] += 1
            await self._on_response(source, response)

    def _ask(self, source: _Source, fault: str = "") -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=SECRET,
            version_info=source.version,
            response_nonce=source.nonce,
            resource_names=source.wanted,
            node=None if source.nonce else self._node,
        )
        if fault:
            request.error_detail.CopyFrom(status_pb2.Status(code=3, message=fault))
        source.requests.put_nowait(request)

    async def _on_response(self, source: _Source, response: Any) -> None:
        source.nonce = response.nonce
        try:
            fresh = dict(self._read(source, response.resources))
        except ConfigError as error:
            self._stats.config_rejected += 1
            log.error("refused secrets from %s version %s: %s", source.name, response.version_info, error)
            self._ask(source, str(error))
            return
        before = self.values
        self.values = {**before, **fresh}
        if self.values != before:
            await self._on_change()
        source.version = response.version_info
        self._ask(source)

    def _read(self, source: _Source, packed: Any) -> Any:
        """Raises ConfigError."""
        for number, item in enumerate(packed):
            try:
                message: Any = unpack(item, f"resources[{number}]")
            except DecodeError as error:
                raise ConfigError(f"resources[{number}]", str(error)) from None
            ref = SecretRef(source.name, message.name)
            if ref in self._refs:
                yield ref, tls.secret(message)


async def follow_static(bootstrap: Bootstrap, proxy: Proxy, stats: Stats, is_ready: asyncio.Event) -> None:
    """Keep a configuration without a control plane at its secrets, for ever."""

    async def on_change() -> None:
        secrets = (*bootstrap.configuration.secrets, *client.values.items())
        await proxy.apply(replace(bootstrap.configuration, secrets=secrets))
        if client.has_all:
            is_ready.set()

    client = SecretsClient(dict(bootstrap.secret_sources), bootstrap.node, stats, on_change)
    client.want(bootstrap.configuration.secret_refs)
    try:
        await asyncio.Future()
    finally:
        await client.close()


async def _outgoing(requests: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while True:
        yield await requests.get()
