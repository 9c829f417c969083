"""Secrets for the data plane beside us, over a Unix socket that only our user can reach (SDS; Envoy: service.secret.v3).

The key is made in this process and goes no further than that socket.
"""

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

SERVICE: Final = "envoy.service.secret.v3.SecretDiscoveryService"
TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
IDENTITY: Final = "identity"
TRUST: Final = "trust"
STOP_GRACE_S: Final = 0.2
MAX_SOCKET_PATH: Final = 100
"""Bytes; the kernel takes a few more."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Papers:
    """What an instance shows, and whom it trusts; PEM."""

    chain: bytes
    key: bytes
    trusted: bytes

    def __repr__(self) -> str:
        return "Papers(…)"


def socket_in(directory: Path) -> Path:
    """A place for the socket: in this directory, which only we can enter, or in one like it with a shorter name."""
    path = directory / "identity.sock"
    if len(str(path).encode()) <= MAX_SOCKET_PATH:
        return path
    shorter = tempfile.mkdtemp(prefix="remora-", dir="/tmp")
    atexit.register(shutil.rmtree, shorter, ignore_errors=True)
    return Path(shorter) / path.name


def _secrets(papers: Papers) -> dict[str, bytes]:
    """By name, serialised."""
    identity = secret_pb2.Secret(name=IDENTITY)
    identity.tls_certificate.certificate_chain.inline_bytes = papers.chain
    identity.tls_certificate.private_key.inline_bytes = papers.key
    trust = secret_pb2.Secret(name=TRUST)
    trust.validation_context.trusted_ca.inline_bytes = papers.trusted
    return {each.name: each.SerializeToString() for each in (identity, trust)}


@dataclass(slots=True, eq=False)
class _Stream:
    """One subscriber: Envoy has a stream for each secret, our sidecar one for all."""

    wake: asyncio.Event
    names: frozenset[str] = frozenset()
    sent: tuple[bytes, ...] = ()
    version: int = 0
    """Of the papers that were sent last."""
    nonce: str = ""
    acked: int = 0
    """Of the papers that it took last."""


class SecretsServer:
    """Serves the newest papers, and knows when they are in force."""

    def __init__(self, socket: Path) -> None:
        self.refused = ""
        """What a subscriber said of the papers that it did not take; empty if it took them."""
        self._socket = socket
        self._secrets: dict[str, bytes] = {}
        self._version = 0
        self._streams: set[_Stream] = set()
        self._acked = asyncio.Condition()
        self._server = grpc.aio.server()

    async def start(self) -> None:
        """Listen."""
        handlers = {
            "StreamSecrets": grpc.stream_stream_rpc_method_handler(
                self._stream,
                request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
                response_serializer=discovery_pb2.DiscoveryResponse.SerializeToString,
            )
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()
        self._socket.chmod(0o600)

    async def stop(self) -> None:
        """Serve no more."""
        await self._server.stop(STOP_GRACE_S)

    def put(self, papers: Papers) -> int:
        """From now on these; their number."""
        self._version += 1
        self._secrets = _secrets(papers)
        self.refused = ""
        for stream in self._streams:
            stream.wake.set()
        return self._version

    @property
    def has_subscribers(self) -> bool:
        """True if somebody uses what is served."""
        return bool(self._streams)

    def _is_in_force(self, version: int) -> bool:
        return bool(self._streams) and all(stream.acked >= version for stream in self._streams)

    async def in_force(self, version: int) -> None:
        """Return once every subscriber has taken these papers, or later ones; there must be one."""
        async with self._acked:
            await self._acked.wait_for(lambda: self._is_in_force(version))

    async def _stream(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Context
    ) -> AsyncIterator[discovery_pb2.DiscoveryResponse]:
        stream = _Stream(asyncio.Event())
        self._streams.add(stream)
        reader = asyncio.create_task(self._read(requests, stream))
        try:
            while not reader.done():
                stream.wake.clear()
                content = tuple(self._secrets[name] for name in sorted(stream.names) if name in self._secrets)
                if content and content != stream.sent:
                    stream.sent, stream.version = content, self._version
                    stream.nonce = str(int(stream.nonce or 0) + 1)
                    yield discovery_pb2.DiscoveryResponse(
                        version_info=str(self._version),
                        type_url=TYPE,
                        nonce=stream.nonce,
                        resources=[any_pb2.Any(type_url=TYPE, value=data) for data in content],
                    )
                elif content and stream.acked == stream.version < self._version:
                    stream.version = stream.acked = self._version  # what it has did not change
                    await self._notify()
                await stream.wake.wait()
        finally:
            reader.cancel()
            self._streams.discard(stream)
            await self._notify()

    async def _read(self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], stream: _Stream) -> None:
        try:
            async for request in requests:
                if request.response_nonce != stream.nonce:
                    continue
                stream.names = frozenset(request.resource_names)
                if request.HasField("error_detail"):
                    self.refused = request.error_detail.message
                elif stream.nonce:
                    stream.acked = stream.version
                await self._notify()
                stream.wake.set()
        finally:
            stream.wake.set()

    async def _notify(self) -> None:
        async with self._acked:
            self._acked.notify_all()
