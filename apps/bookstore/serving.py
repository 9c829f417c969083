"""How every service of the bookstore runs: environment, server, health, reflection, and a stop that lets calls finish.

| variable | meaning | default |
|---|---|---|
| PORT | port to listen on, of 127.0.0.1; 0 picks a free one | 50051 |
| BOOKSTORE_DIR | directory of the databases | .demo/bookstore |
| BOOKSTORE_DATABASE | URL of the databases instead, `{service}` in it is the service's name | SQLite files |
| PURCHASES | which way purchases go: forward, saga, tcc, outbox, xa, naive | forward |
| VERSION | version that the service says it has | v1 |
| BOOKSTORE_SYNCHRONOUS | FULL: answers survive a power cut; NORMAL: `kill -9`, and commits do not wait for a slow disk | FULL |
| INSTANCE | name that the instance gives itself | the service's name and the port |

`grpc.aio`, because a service that waits for others must still answer its health check: with a pool of threads, as many slow calls as it
has threads make it look dead. (It costs about 100 µs more per call than the pool, and that is paid.)
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from apps.bookstore import branches
from apps.bookstore.database import SERVICE, SYNCHRONOUS, DatabaseAway, Place, place
from apps.bookstore.edge import Edge

HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 50051
WAYS: Final = ("forward", "saga", "tcc", "outbox", "xa", "naive")
"""Of a purchase through the services (`orders`)."""
MAX_MESSAGE_BYTES: Final = 64 * 1024
STOP_GRACE_S: Final = 5.0
"""After SIGTERM, calls that run get so long to finish."""
_OPTIONS: Final = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES))

EXIT_DONE: Final = 0
EXIT_BAD_INPUT: Final = 2


class BadSettings(Exception):
    """The environment cannot be used; the text says what and why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says."""

    port: int
    directory: Path
    synchronous: str
    database: str
    """URL with `{service}` in it; empty: files in the directory."""
    purchases: str
    version: str
    instance: str
    """Empty: named after service and port once that is known."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Settings":
        """Raises BadSettings."""
        port = environment.get("PORT", "") or str(DEFAULT_PORT)
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise BadSettings(f'PORT: "{port}" is no port; 0 to 65535 is needed')
        synchronous = environment.get("BOOKSTORE_SYNCHRONOUS", "") or SYNCHRONOUS[0]
        if synchronous not in SYNCHRONOUS:
            raise BadSettings(f'BOOKSTORE_SYNCHRONOUS: "{synchronous}" is not known; known: {", ".join(SYNCHRONOUS)}')
        database = environment.get("BOOKSTORE_DATABASE", "")
        if database and SERVICE not in database:
            raise BadSettings(
                f'BOOKSTORE_DATABASE: "{database}" has no {SERVICE} in it; each service has a database of its own'
            )
        purchases = environment.get("PURCHASES", "") or WAYS[0]
        if purchases not in WAYS:
            raise BadSettings(f'PURCHASES: "{purchases}" is not known; known: {", ".join(WAYS)}')
        return cls(
            port=int(port),
            directory=Path(environment.get("BOOKSTORE_DIR", "") or ".demo/bookstore"),
            synchronous=synchronous,
            database=database,
            purchases=purchases,
            version=environment.get("VERSION", "") or "v1",
            instance=environment.get("INSTANCE", ""),
        )

    def place(self, file: str) -> Place:
        """Where the database is that would be this file."""
        return place(self.directory, file, self.database)


Attach = Callable[[grpc.aio.Server, Settings], AbstractAsyncContextManager[None]]
"""Adds a service to the server, and keeps what it needs open as long as the context lasts."""


def run(service: ServiceDescriptor, attach: Attach, *, joins_with: str = "") -> int:
    """Serve until SIGTERM or SIGINT; the exit code. `joins_with`: the file of the database with which it takes part in transactions."""
    name = service.name.lower()
    try:
        return asyncio.run(_serve(service, name, Settings.of(os.environ), attach, joins_with))
    except (BadSettings, DatabaseAway) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


async def _serve(service: ServiceDescriptor, name: str, settings: Settings, attach: Attach, joins_with: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        joining = (
            stack.enter_context(branches.joining(settings.place(joins_with), settings.synchronous))
            if joins_with
            else ()
        )
        server = grpc.aio.server(interceptors=[Edge(service.full_name), *joining], options=list(_OPTIONS))
        settings = _listening(server, settings, name)
        await stack.enter_async_context(attach(server, settings))
        await _until_stopped(server, service, f"{name} {settings.version} {settings.instance}", settings.port, stop)
    return EXIT_DONE


def _listening(server: grpc.aio.Server, settings: Settings, name: str) -> Settings:
    """The settings with the port and the name that they left open. Raises BadSettings."""
    try:
        port = server.add_insecure_port(f"{HOST}:{settings.port}")
    except RuntimeError:
        raise BadSettings(f"PORT: {settings.port} of {HOST} is taken, or may not be used") from None
    return replace(settings, port=port, instance=settings.instance or f"{name}-{port}")


async def _until_stopped(
    server: grpc.aio.Server, service: ServiceDescriptor, who: str, port: int, stop: asyncio.Event
) -> None:
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    names = (service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    await server.start()
    await healths.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
    print(f"{who}: listening on {HOST}:{port}", file=sys.stderr, flush=True)
    try:
        await stop.wait()
    finally:
        await healths.enter_graceful_shutdown()
        await server.stop(STOP_GRACE_S)
