"""How every service of the bookstore runs: environment, server, health, reflection, and a stop that lets calls finish.

| variable | meaning | default |
|---|---|---|
| PORT | port to listen on, of 127.0.0.1; 0 picks a free one | 50051 |
| BOOKSTORE_DIR | directory of the databases | .demo/bookstore |
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
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from apps.bookstore.database import SYNCHRONOUS, DatabaseAway
from apps.bookstore.edge import Edge

HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 50051
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
        return cls(
            port=int(port),
            directory=Path(environment.get("BOOKSTORE_DIR", "") or ".demo/bookstore"),
            synchronous=synchronous,
            version=environment.get("VERSION", "") or "v1",
            instance=environment.get("INSTANCE", ""),
        )


Attach = Callable[[grpc.aio.Server, Settings], AbstractAsyncContextManager[None]]
"""Adds a service to the server, and keeps what it needs open as long as the context lasts."""


def run(service: ServiceDescriptor, attach: Attach) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    name = service.name.lower()
    try:
        return asyncio.run(_serve(service, name, Settings.of(os.environ), attach))
    except (BadSettings, DatabaseAway) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


async def _serve(service: ServiceDescriptor, name: str, settings: Settings, attach: Attach) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = grpc.aio.server(interceptors=[Edge(service.full_name)], options=list(_OPTIONS))
    try:
        port = server.add_insecure_port(f"{HOST}:{settings.port}")
    except RuntimeError:
        raise BadSettings(f"PORT: {settings.port} of {HOST} is taken, or may not be used") from None
    settings = replace(settings, port=port, instance=settings.instance or f"{name}-{port}")
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    names = (service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    async with attach(server, settings):
        await server.start()
        await healths.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
        print(f"{name} {settings.version} {settings.instance}: listening on {HOST}:{port}", file=sys.stderr, flush=True)
        try:
            await stop.wait()
        finally:
            await healths.enter_graceful_shutdown()
            await server.stop(STOP_GRACE_S)
    return EXIT_DONE
