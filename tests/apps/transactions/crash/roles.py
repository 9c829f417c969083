"""The processes of a run: coordinator, two participants, initiator. Each forks from a server that has imported everything, so a
restart costs milliseconds.

Points are found by the seam: every crossing is written to the run's trace, and compared with the points at which to die.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import grpc

from apps.transactions import client, outbox, seam
from apps.transactions.barrier import AioBarrier, Refused, mark
from apps.transactions.calling import Caller
from apps.transactions.client import NotEnded, RolledBack, Transactions
from apps.transactions.coordinator.__main__ import Arguments, serve
from apps.transactions.coordinator.engine import Settings
from apps.transactions.coordinator.machine import Retries
from apps.transactions.xa import ask, keep_resolving
from tests.apps.transactions import bank

COORDINATOR: Final = "coordinator"
SECOND: Final = "second"
"""Another replica of the coordinator, on the same log."""
ACCOUNTS: Final = "accounts"
SHOP: Final = "shop"
INITIATOR: Final = "initiator"
OPENING: Final = {ACCOUNTS: {"reader": 100}, SHOP: {"till": 0}, INITIATOR: {"purse": 100}}
SETTINGS: Final = Settings(
    "one", session_ttl_s=2.0, call_timeout_s=2.0,
    retries=Retries(first_s=0.02, most_s=0.1, ongoing_s=0.05, dead_after=10_000),
)  # fmt: skip
RELAY: Final = outbox.Settings(poll_s=0.05, retries=SETTINGS.retries)
OPEN_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """A crossing of a role, and who dies there."""

    role: str
    crossing: str
    """`before write barrier.commit`."""
    nth: int
    """Of this crossing, since the process began."""
    victim: str
    is_pause: bool = False
    """The victim is stopped, as by a debugger or a full host, and goes on when others have taken its work over."""

    def __str__(self) -> str:
        by = "" if self.victim == self.role else f" kills {self.victim}"
        return f"{self.role} {self.crossing} #{self.nth}{by}"


@dataclass(frozen=True, slots=True)
class Run:
    """What every process of a run knows."""

    directory: Path
    scenario: str
    ports: dict[str, int]
    databases: dict[str, str]
    points: tuple[Point, ...]
    """In this order: the second is armed when the first has fired."""

    @property
    def mode(self) -> str:
        return self.scenario.partition("-")[0]

    @property
    def gid(self) -> str:
        """Of this run only: names of prepared transactions are unique in a PostgreSQL server, not in a database."""
        return f"g-{self.directory.name}"

    @property
    def price(self) -> int:
        return 130 if self.scenario.endswith("-refused") else 30

    def pid_file(self, role: str) -> Path:
        return self.directory / f"{role}.pid"

    @property
    def has_second(self) -> bool:
        return SECOND in self.ports

    def fired(self, index: int) -> Path:
        return self.directory / f"fired-{index}"

    def url(self, role: str, method: str) -> str:
        return f"grpc://127.0.0.1:{self.ports[role]}/{bank.SERVICE}/{method}"


def start(role: str, run: Run) -> None:
    """The entry of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run.pid_file(role).write_text(str(os.getpid()))
    os.dup2(os.open(run.directory / f"{role}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    _watch(role, run)
    asyncio.run(_ROLES[role](role, run))


def _watch(role: str, run: Run) -> None:
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    trace = os.open(run.directory / "trace", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(side: str, name: str) -> None:
        with lock:
            crossing = f"{side} {name}"
            counts[crossing] += 1
            os.write(trace, f"{role}\t{crossing}\t{counts[crossing]}\n".encode())
            for index, point in enumerate(run.points):
                if (point.role, point.crossing, point.nth) != (role, crossing, counts[crossing]):
                    continue
                is_armed = index == 0 or run.fired(index - 1).exists()
                if is_armed and not run.fired(index).exists():
                    run.fired(index).touch()
                    _strike(run, point)

    seam.install(hook)


def _strike(run: Run, point: Point) -> None:
    with contextlib.suppress(ProcessLookupError):  # dead already
        number = signal.SIGSTOP if point.is_pause else signal.SIGKILL
        os.kill(int(run.pid_file(point.victim).read_text()), number)


async def _coordinator(role: str, run: Run) -> None:
    listen = f"127.0.0.1:{run.ports[role]}"
    settings = replace(SETTINGS, name=role, session_ttl_s=0.6 if run.has_second else SETTINGS.session_ttl_s)
    code = await serve(Arguments(listen, run.databases[COORDINATOR], 0, settings, False), asyncio.Event())
    raise SystemExit(code)


class _Recorder(grpc.aio.ServerInterceptor):
    """Outside the barrier: writes down what leaves it."""

    def __init__(self, run: Run) -> None:
        self._file = os.open(run.directory / "answers", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        sent = {str(key): str(value) for key, value in handler_call_details.invocation_metadata or ()}
        key = "\t".join(sent.get(name, "") for name in ("x-tx-gid", "x-tx-branch", "x-tx-op"))

        async def recorded(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            code, reply = "?", b""
            try:
                reply = cast(bytes, await handler.unary_unary(request, context))
                code = "OK"
            except grpc.aio.AbortError:
                code, reply = str(context.code().name), (context.details() or "").encode()
                raise
            finally:
                os.write(self._file, f"{key}\t{code}\t{' '.join(reply.decode().split())}\n".encode())
            return reply

        return grpc.unary_unary_rpc_method_handler(
            cast(Any, recorded), handler.request_deserializer, handler.response_serializer
        )


async def _serve_bank(role: str, run: Run) -> tuple[grpc.aio.Server, Any]:
    engine = bank.open_engine(run.databases[role])
    server = grpc.aio.server(interceptors=[_Recorder(run), AioBarrier(engine)], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((bank.AioHandlers(),))
    if server.add_insecure_port(f"127.0.0.1:{run.ports[role]}") == 0:
        raise RuntimeError("the port is taken")
    await server.start()
    return server, engine


async def _participant(role: str, run: Run) -> None:
    _server, engine = await _serve_bank(role, run)
    if run.mode == "xa":
        coordinator = Transactions(f"127.0.0.1:{run.ports[COORDINATOR]}")
        await keep_resolving(engine, ask(coordinator), every_s=0.3)
    await asyncio.Event().wait()


async def _initiator(role: str, run: Run) -> None:
    """Does the same thing, under the same gid, until it knows the end; so it also does after a crash."""
    _server, engine = await _serve_bank(role, run)
    coordinator = Transactions(f"127.0.0.1:{run.ports.get(COORDINATOR, 1)}", wait_s=5.0)
    if run.scenario.endswith("-alone"):
        await _try_once(run, coordinator, engine)
    relaying = None
    if run.mode == "outbox":
        relaying = asyncio.create_task(outbox.Relay(engine, Caller(), RELAY).run())
    while True:
        try:
            await _ONCE[run.mode](run, coordinator, engine)
        except (RolledBack, Refused):
            break
        except NotEnded:
            continue
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.ABORTED:
                break  # a branch was refused: the block has aborted the transaction
            await asyncio.sleep(0.02)
        else:
            break
    (run.directory / "knows").touch()
    if relaying is not None:
        await relaying
    await asyncio.Event().wait()


async def _try_once(run: Run, coordinator: Transactions, engine: Any) -> None:
    """An initiator that gives up at the first trouble, and has forgotten everything when it comes back."""
    client.PATIENCE_S = 0.0  # type: ignore[misc]
    if not (run.directory / "tried").exists():
        (run.directory / "tried").touch()
        with contextlib.suppress(grpc.aio.AioRpcError, RolledBack, NotEnded, Refused):
            await _ONCE[run.mode](run, coordinator, engine)
    (run.directory / "knows").touch()
    await asyncio.Event().wait()


async def _saga(run: Run, coordinator: Transactions, engine: Any) -> None:
    saga = coordinator.saga(run.gid)
    saga.step("credit", run.url(SHOP, "Move"), bank.request("till", run.price), undo=run.url(SHOP, "MoveBack"))
    saga.step(
        "debit", run.url(ACCOUNTS, "Move"), bank.request("reader", -run.price), undo=run.url(ACCOUNTS, "MoveBack")
    )
    await saga.run()


async def _tcc(run: Run, coordinator: Transactions, engine: Any) -> None:
    async with coordinator.tcc(run.gid, timeout_s=OPEN_TIMEOUT_S) as tcc:
        for name, role, holding, amount in (
            ("credit", SHOP, "till", run.price),
            ("debit", ACCOUNTS, "reader", -run.price),
        ):
            confirm, cancel = run.url(role, "Confirm"), run.url(role, "Cancel")
            body = bank.request(holding, amount)
            await tcc.call(name, run.url(role, "Reserve"), body, confirm=confirm, cancel=cancel)


async def _xa(run: Run, coordinator: Transactions, engine: Any) -> None:
    async with coordinator.xa(run.gid, timeout_s=OPEN_TIMEOUT_S) as xa:
        await xa.call("credit", run.url(SHOP, "Move"), bank.request("till", run.price))
        await xa.call("debit", run.url(ACCOUNTS, "Move"), bank.request("reader", -run.price))


async def _message(run: Run, coordinator: Transactions, engine: Any) -> None:
    message = coordinator.message(run.gid, query=run.url(INITIATOR, "Move"), timeout_s=OPEN_TIMEOUT_S / 2)
    async with message.deliver("credit", run.url(SHOP, "Move"), bank.request("till", run.price)):
        await asyncio.to_thread(_pay, run, engine)


def _pay(run: Run, engine: Any) -> None:
    with seam.crossing("write", "initiator.commit"), engine.begin() as connection:
        if mark(connection, run.gid):
            bank.change(connection, None, "purse", -run.price, 0)


async def _outbox(run: Run, coordinator: Transactions, engine: Any) -> None:
    def publish() -> None:
        with seam.crossing("write", "initiator.commit"), engine.begin() as connection:
            if not mark(connection, run.gid):
                return
            for number in range(3):
                bank.change(connection, None, "purse", -10, 0)
                body = bank.request("till", 10)
                outbox.publish(connection, run.url(SHOP, "Move"), body, key="k", event=f"e{number}")

    await asyncio.to_thread(publish)


_ONCE: Final = {"saga": _saga, "tcc": _tcc, "xa": _xa, "message": _message, "outbox": _outbox}
_ROLES: Final = {
    COORDINATOR: _coordinator,
    SECOND: _coordinator,
    ACCOUNTS: _participant,
    SHOP: _participant,
    INITIATOR: _initiator,
}


def roles_of(scenario: str) -> tuple[str, ...]:
    """The processes that a scenario needs."""
    if scenario.startswith("outbox"):
        return SHOP, INITIATOR
    return COORDINATOR, ACCOUNTS, SHOP, INITIATOR
