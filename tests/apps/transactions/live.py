"""Coordinators and participants in this process, over real sockets and real databases, for tests that kill nobody."""

import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import grpc
from sqlalchemy import Engine as Database

from apps.transactions.barrier import AioBarrier
from apps.transactions.calling import Caller
from apps.transactions.client import Transactions
from apps.transactions.coordinator.engine import Engine, Settings
from apps.transactions.coordinator.machine import Retries
from apps.transactions.coordinator.service import CoordinatorService
from apps.transactions.coordinator.sql import SqlLog, open_log_engine
from proto.transactions.v1 import coordinator_pb2_grpc as pb_grpc
from tests.apps.transactions import bank

QUICK: Final = Settings(
    "one",
    session_ttl_s=0.6,
    call_timeout_s=2.0,
    retries=Retries(first_s=0.02, most_s=0.2, ongoing_s=0.05, dead_after=5),
)
QUICK_TWO: Final = replace(QUICK, name="two")


@dataclass
class Participant:
    database: Database
    target: str

    def url(self, method: str) -> str:
        return f"grpc://{self.target}/{bank.SERVICE}/{method}"


@dataclass
class Replica:
    engine: Engine
    log: SqlLog
    target: str
    client: Transactions
    database: Database = field(repr=False)


@asynccontextmanager
async def participant(url: str, holdings: Mapping[str, int], port: int = 0) -> AsyncIterator[Participant]:
    database = bank.open_engine(url)
    bank.open_bank(database, dict(holdings))
    barrier = AioBarrier(database)
    server = grpc.aio.server(interceptors=[barrier], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((bank.AioHandlers(),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield Participant(database, f"127.0.0.1:{port}")
    await server.stop(None)
    barrier.close()
    database.dispose()


@asynccontextmanager
async def replica(
    url: str,
    settings: Settings = QUICK,
    clock: Callable[[], float] = time.time,
    calls: Caller | None = None,
    identity_key: str = "",
) -> AsyncIterator[Replica]:
    database = open_log_engine(url, is_synchronous=False)
    log = SqlLog(database)
    async with AsyncExitStack() as stack:
        calls = calls or Caller()
        engine = await stack.enter_async_context(Engine(log, calls, settings, clock=clock, dice=random.Random(1)))
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb_grpc.add_CoordinatorServicer_to_server(CoordinatorService(engine, identity_key), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = Transactions(f"127.0.0.1:{port}")
        client.caller = calls
        yield Replica(engine, log, f"127.0.0.1:{port}", client, database)
        await client.close()
        await server.stop(None)
    await log.close()
    database.dispose()


@dataclass
class World:
    """A warehouse, accounts, and one coordinator."""

    warehouse: Participant
    accounts: Participant
    one: Replica
    log_url: str

    def other(self, settings: Settings = QUICK_TWO) -> AbstractAsyncContextManager[Replica]:
        """One more replica on the same log."""
        return replica(self.log_url, settings)


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    log_url = f"sqlite:///{tmp_path / 'log.db'}"
    async with (
        participant(f"sqlite:///{tmp_path / 'warehouse.db'}", {"books": 10, "sold": 0}) as warehouse,
        participant(f"sqlite:///{tmp_path / 'accounts.db'}", {"reader": 100, "till": 0}) as accounts,
        replica(log_url) as one,
    ):
        yield World(warehouse, accounts, one, log_url)
