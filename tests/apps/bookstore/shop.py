"""A bookstore of real processes on loopback ports, and a gate that holds calls up between them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Final

import grpc

from apps.bookstore import seed
from proto.bookstore.v1 import (
    accounts_pb2_grpc,
    notification_pb2_grpc,
    orders_pb2_grpc,
    payment_pb2_grpc,
    warehouse_pb2_grpc,
)
from tests.ports import free_ports
from tests.waiting import eventually

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
ABSENT: Final = "127.0.0.1:1"
"""Nobody listens there."""


class Program:
    """A program of the bookstore in a process of its own."""

    def __init__(self, directory: Path, words: Sequence[str], env: dict[str, str]) -> None:
        self._log = directory / f"{words[0]}-{len(list(directory.glob('*.log')))}.log"
        directory.mkdir(parents=True, exist_ok=True)
        clean = {key: value for key, value in os.environ.items() if not key.endswith(("_proxy", "_PROXY"))}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", words[0] if "." in words[0] else f"apps.bookstore.{words[0]}", *words[1:]],
                env={**clean, "BOOKSTORE_DIR": str(directory), "GRPC_VERBOSITY": "NONE", **env},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return self._log.read_text()

    @property
    def target(self) -> str:
        """HOST:PORT, once it listens."""
        pattern = re.compile(r"listening on (\S+:\d+)\n")

        def look() -> re.Match[str] | None:
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.said}"
            return pattern.search(self.said)

        found = eventually(look, timeout_s=START_TIMEOUT_S)
        assert found is not None
        return found[1]

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.kill()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def running(directory: Path, *words: str, **env: str) -> Iterator[Program]:
    """A program, killed at the end if it still runs. Services pick a free port unless PORT says which."""
    program = Program(directory, words, {"PORT": "0", **env})
    try:
        yield program
    finally:
        program.close()


@dataclass
class Shop:
    """Three services and somebody who calls them."""

    directory: Path
    orders: orders_pb2_grpc.OrdersStub
    warehouse: warehouse_pb2_grpc.WarehouseStub
    accounts: accounts_pb2_grpc.AccountsStub
    targets: dict[str, str]


@contextmanager
def open_shop(directory: Path, copies: int = 1000) -> Iterator[Shop]:
    """A shop that is open as long as the context lasts."""
    seed.seed(directory, copies)
    with ExitStack() as stack:
        warehouse = stack.enter_context(running(directory, "warehouse", VERSION="v1", INSTANCE="warehouse-a"))
        accounts = stack.enter_context(running(directory, "accounts"))
        targets = {"WAREHOUSE_TARGET": warehouse.target, "ACCOUNTS_TARGET": accounts.target}
        orders = stack.enter_context(running(directory, "orders", **targets))
        channels = [stack.enter_context(grpc.insecure_channel(each.target)) for each in (orders, warehouse, accounts)]
        yield Shop(
            directory,
            orders_pb2_grpc.OrdersStub(channels[0]),
            warehouse_pb2_grpc.WarehouseStub(channels[1]),
            accounts_pb2_grpc.AccountsStub(channels[2]),
            {"orders": orders.target, "warehouse": warehouse.target, "accounts": accounts.target},
        )


@dataclass
class Market:
    """All services of a purchase by one of the five ways, which can be killed and started again at their ports."""

    directory: Path
    url: str
    """Of the databases; empty: files."""
    way: str
    programs: dict[str, Program]
    targets: dict[str, str]
    channels: dict[str, grpc.Channel]

    @property
    def orders(self) -> orders_pb2_grpc.OrdersStub:
        return orders_pb2_grpc.OrdersStub(self.channels["orders"])

    @property
    def accounts(self) -> accounts_pb2_grpc.AccountsStub:
        return accounts_pb2_grpc.AccountsStub(self.channels["accounts"])

    @property
    def warehouse(self) -> warehouse_pb2_grpc.WarehouseStub:
        return warehouse_pb2_grpc.WarehouseStub(self.channels["warehouse"])

    @property
    def payment(self) -> payment_pb2_grpc.PaymentStub:
        return payment_pb2_grpc.PaymentStub(self.channels["payment"])

    @property
    def notification(self) -> notification_pb2_grpc.NotificationStub:
        return notification_pb2_grpc.NotificationStub(self.channels["notification"])

    def start(self, name: str) -> None:
        """At the port that it has, or that the test chose for it."""
        host_port = self.targets[name]
        words: tuple[str, ...] = (name,)
        if name == "transactions":
            log = f"sqlite:///{self.directory}/transactions.sqlite3"
            words = ("apps.transactions.coordinator", "--listen", host_port, "--log", log, "--name", "one")
        env = {f"{key.upper()}_TARGET": value for key, value in self.targets.items()}
        env |= {
            "PURCHASES": self.way,
            "BOOKSTORE_DATABASE": self.url,
            "BOOKSTORE_SYNCHRONOUS": "NORMAL",
            "BANK_SEED": "1",
        }
        self.programs[name] = Program(self.directory, words, {**env, "PORT": host_port.rpartition(":")[2]})

    def kill(self, *names: str) -> None:
        """SIGKILL, one after the other."""
        for name in names:
            self.programs[name].kill()

    def restart(self, *names: str) -> None:
        """Start again what was killed."""
        for name in names:
            self.programs[name].close()
            self.start(name)

    def close(self) -> None:
        """Leave nothing behind."""
        for each in self.programs.values():
            each.close()

    def until_up(self) -> None:
        """All listen."""
        for each in self.programs.values():
            assert each.target


SERVICES_OF_A_WAY: Final = ("transactions", "bank", "accounts", "warehouse", "payment", "notification", "orders")


@contextmanager
def open_market(directory: Path, way: str, url: str = "", copies: int = 1000) -> Iterator[Market]:
    """A shop whose purchases go by this way."""
    seed.seed(directory, copies, url)
    targets = {name: f"127.0.0.1:{port}" for name, port in zip(SERVICES_OF_A_WAY, free_ports(7), strict=True)}
    with ExitStack() as stack:
        channels = {name: stack.enter_context(grpc.insecure_channel(target)) for name, target in targets.items()}
        market = Market(directory, url, way, {}, targets, channels)
        stack.callback(market.close)
        for name in SERVICES_OF_A_WAY:
            market.start(name)
        market.until_up()
        yield market


Pass = Callable[[], bytes]
"""Sends the call on; the answer's bytes, or RpcError."""
Rule = Callable[[Pass, grpc.ServicerContext], bytes]


@dataclass
class Gate(grpc.GenericRpcHandler):
    """Stands before a real service and passes its calls on, unless a rule for the method says what else happens."""

    target: str
    """Of the service behind it; may be set later."""
    rules: dict[str, Rule] = field(default_factory=dict)
    """By the method's short name."""
    port: int = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        method = handler_call_details.method

        def call(request: bytes, context: grpc.ServicerContext) -> bytes:
            def send() -> bytes:
                with grpc.insecure_channel(self.target) as channel:
                    raw: Any = channel.unary_unary(method, lambda data: data, lambda data: data)
                    answer: bytes = raw(request, timeout=5)
                    return answer

            rule = self.rules.get(method.rpartition("/")[2])
            try:
                return send() if rule is None else rule(send, context)
            except grpc.RpcError as error:
                failed: Any = error
                context.set_trailing_metadata(failed.trailing_metadata() or ())
                context.abort(failed.code(), failed.details())
                raise

        return grpc.unary_unary_rpc_method_handler(call)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"


@contextmanager
def gate(target: str) -> Iterator[Gate]:
    """A gate before a service."""
    each = Gate(target)
    pool = ThreadPoolExecutor(16)
    server = grpc.server(pool, handlers=[each])
    each.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield each
    finally:
        server.stop(None).wait()
        pool.shutdown()


@dataclass
class Hold:
    """A rule: stop the first call, before or after it has done its work, until it is let go."""

    is_after: bool = False
    reached: Event = field(default_factory=Event)
    let_go: Event = field(default_factory=Event)

    def __call__(self, send: Pass, context: grpc.ServicerContext) -> bytes:
        if self.reached.is_set():
            return send()
        answer = send() if self.is_after else b""
        self.reached.set()
        self.let_go.wait(START_TIMEOUT_S)
        return answer if self.is_after else send()


def failing(times: int, code: grpc.StatusCode, *, after: bool = False) -> Rule:
    """A rule: the first calls fail, before or after the work is done, as if something between had made the error."""
    left = [times]

    def rule(send: Pass, context: grpc.ServicerContext) -> bytes:
        if left[0] > 0:
            left[0] -= 1
            if after:
                send()
            context.abort(code, "made by the test")
        return send()

    return rule
