"""Runs a replica: `python -m apps.transactions.coordinator --log sqlite:///transactions.db`."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from apps.transactions.calling import Caller
from apps.transactions.coordinator.engine import Engine, Settings
from apps.transactions.coordinator.log import Log, LogUnavailable
from apps.transactions.coordinator.service import MAX_MESSAGE_BYTES, CoordinatorService
from apps.transactions.coordinator.sql import SqlLog, open_log_engine
from proto.transactions.v1 import coordinator_pb2 as pb
from proto.transactions.v1 import coordinator_pb2_grpc as pb_grpc

STOP_GRACE_S: Final = 5.0
EXIT_DONE: Final = 0
EXIT_BAD_INPUT: Final = 2
SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name


@dataclass(frozen=True, slots=True)
class Arguments:
    listen: str
    log: str
    http: int
    settings: Settings
    is_log_synchronous: bool = True
    identity_key: str = ""


async def serve(arguments: Arguments, stop: asyncio.Event) -> int:
    """Serve until `stop`, with a log in SQL; the exit code."""
    try:
        log = SqlLog(open_log_engine(arguments.log, is_synchronous=arguments.is_log_synchronous))
    except (LogUnavailable, ArgumentError, NoSuchModuleError) as error:
        print(f"coordinator: --log: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return await serve_with(log, arguments, stop)


async def serve_with(log: Log, arguments: Arguments, stop: asyncio.Event) -> int:
    """Serve until `stop`, with this log, which is closed in the end; the exit code."""
    options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    server = grpc.aio.server(options=options)
    try:
        port = server.add_insecure_port(arguments.listen)
    except RuntimeError:
        print(f"coordinator: --listen {arguments.listen} is taken, or may not be used", file=sys.stderr)
        await log.close()
        return EXIT_BAD_INPUT
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    calls = Caller()
    async with Engine(log, calls, arguments.settings) as engine:
        pb_grpc.add_CoordinatorServicer_to_server(CoordinatorService(engine, arguments.identity_key), server)
        await server.start()
        await healths.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        host = arguments.listen.rpartition(":")[0]
        print(f"coordinator {arguments.settings.name}: listening on {host}:{port}", file=sys.stderr, flush=True)
        await stop.wait()
        await healths.enter_graceful_shutdown()
        await server.stop(STOP_GRACE_S)
    await calls.close()
    await log.close()
    return EXIT_DONE


async def until_signalled(serving: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await serving(stop)


def read(words: Sequence[str] | None = None) -> Arguments:
    """What the command line says; ends the program with 2 if it cannot be read."""
    parser = argparse.ArgumentParser(prog="coordinator", description="Sees transactions through.")
    usual = f"127.0.0.1:{os.environ.get('PORT') or 36790}"
    parser.add_argument(
        "--listen", default=usual, help="address of the gRPC API; port 0 picks a free one (default: %(default)s)"
    )
    parser.add_argument("--log", default="sqlite:///transactions.db", help="SQLAlchemy URL of the log")
    parser.add_argument("--http", type=int, default=0, help="port of /metrics on 127.0.0.1; 0: none")
    parser.add_argument(
        "--name", default="", help="unique among the replicas; default: the host's name and the address"
    )
    parser.add_argument(
        "--services",
        default="*",
        metavar="PATTERNS",
        help="HOST:PORT that branches may call, such as *.shop:50051,*.bank:*",
    )
    parser.add_argument(
        "--identity",
        default="",
        metavar="KEY",
        help="metadata key that says who calls, such as x-forwarded-client-cert",
    )
    given = parser.parse_args(words)
    name = given.name or f"{socket.gethostname()}-{given.listen if not given.listen.endswith(':0') else os.getpid()}"
    services = tuple(each for each in given.services.split(",") if each)
    settings = Settings(name, services=services)
    return Arguments(given.listen, given.log, given.http, settings, identity_key=given.identity.lower())


def main() -> int:
    arguments = read()
    if arguments.http:
        start_http_server(arguments.http, "127.0.0.1")
    return asyncio.run(until_signalled(lambda stop: serve(arguments, stop)))


if __name__ == "__main__":
    sys.exit(main())
