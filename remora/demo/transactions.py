"""`remora demo --transactions`: the same purchase by five ways, while processes are killed; is all the money there, and every book?"""

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

import grpc
import uvloop
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from proto.mesh.v1 import api_pb2_grpc
from remora import environment, exits
from remora.addresses import UsageError
from remora.agent import child, ports
from remora.demo import opening, postgres
from remora.demo.chaos import Chaos
from remora.demo.crowd import GOOD, Crowd
from remora.demo.fleet import CONTROL_PLANE, SHOPPERS, Fleet
from remora.demo.screen import Screen
from remora.demo.tour import NAMESPACE, Expectation, start_instance

WAYS: Final = {
    "saga": "act; undo what was done if a step is refused",
    "tcc": "set aside; then confirm all, or cancel all",
    "outbox": "take the books; what follows is written down with the order, and happens",
    "xa": "prepare in three databases; then commit all, or roll back all",
    "naive": "one call after the other, and hope",
}
ALL: Final = "all"
INSTANCES: Final = (
    ("transactions", "v1", 1),
    ("transactions", "v1", 2),
    ("bank", "v1", 1),
    ("accounts", "v1", 1),
    ("warehouse", "v1", 1),
    ("warehouse", "v2", 1),
    ("warehouse", "v3", 1),
    ("payment", "v1", 1),
    ("notification", "v1", 1),
    ("orders", "v1", 1),
)
"""Service, version, number."""
COORDINATED: Final = ("saga", "tcc", "xa")
"""Whose history is in the coordinator's log."""
SPARE: Final = (("transactions", "v1", 2), ("warehouse", "v2", 1), ("warehouse", "v3", 1))
"""Left out of a small demo."""
COORDINATOR: Final = "transactions"
SERVICES: Final = ("--services", f"*.{NAMESPACE}:50051")
"""That branches of a transaction may call."""
RATE: Final = 15
"""Purchases a second."""
XA_RATE: Final = 6
"""What is prepared is locked: purchases of the same book wait for each other."""
READERS: Final = 1000
COPIES: Final = 10_000
"""Of each title."""
SEED: Final = 7
SETTLE_TIMEOUT_S: Final = 90.0
GIVEN_UP_S: Final = 8.0
"""The naive way sees to nothing later: an order that is open for so long counts as given up."""
TICK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class TransactionsSpec:
    """What the command line asked for."""

    ways: tuple[str, ...]
    for_s: float
    """Shoppers buy for so long, by each way."""
    with_chaos: bool
    engine: str = "remora"
    store: str | None = None
    is_small: bool = False
    seed: int = SEED


@dataclass(slots=True)
class Reckoning:
    """The newest count."""

    money: tuple[int, int] = (0, 0)
    """Cents: expected, found."""
    books: tuple[int, int] = (0, 0)
    orders: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Reckoning":
        money, stock = said["money_cents"], said["stock"]
        return cls(
            (money["expected"], money["found"]), (stock["expected"], stock["found"]), said["orders"], said["wrong"]
        )

    @property
    def adds_up(self) -> bool:
        return self.money[0] == self.money[1] and self.books[0] == self.books[1] and not self.wrong

    @property
    def open_orders(self) -> int:
        return sum(count for state, count in self.orders.items() if state not in ("SETTLED", "REJECTED"))

    def __str__(self) -> str:
        return (
            f"money expected {cents(self.money[0])} found {cents(self.money[1])}, "
            f"books expected {self.books[0]:,} found {self.books[1]:,}; "
            f"{self.orders.get('SETTLED', 0)} bought, {self.orders.get('REJECTED', 0)} refused, {self.open_orders} open"
        )


def cents(amount: int) -> str:
    """As people write it."""
    return f"{'-' if amount < 0 else ''}{abs(amount) // 100:,}.{abs(amount) % 100:02}"


def ways_of(asked: str) -> tuple[str, ...]:
    """Raises UsageError."""
    if asked == ALL:
        return tuple(WAYS)
    if asked not in WAYS:
        raise UsageError(f'--transactions: "{asked}" is not known; known: {", ".join(WAYS)}, {ALL}')
    return (asked,)


def run_transactions(spec: TransactionsSpec) -> int:
    """Run the demo; the exit code: 0 only if money and books add up. Raises UsageError, Failure.

    If all ways are asked for, the naive one must go wrong: that it does is then one of the expectations.
    """
    if spec.engine not in opening.ENGINES:
        raise UsageError(f'--engine: "{spec.engine}" is not known; known: {", ".join(opening.ENGINES)}')
    directory = Path(tempfile.mkdtemp(prefix="remora-demo-"))
    is_clean = False
    try:
        code = uvloop.run(_run(spec, directory))
        is_clean = code in (exits.DONE, exits.INTERRUPTED) or spec.ways == ("naive",)
        return code
    except asyncio.CancelledError:
        is_clean = True
        return exits.INTERRUPTED
    finally:
        if is_clean:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"the databases and the logs of all processes are kept in {directory}", file=sys.stderr)


async def _run(spec: TransactionsSpec, directory: Path) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    expectations: list[Expectation] = []
    with Screen(task.cancel) as screen:
        for way in spec.ways:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, task.cancel)
            place = directory / way
            place.mkdir()
            async with _databases(way) as url:
                market = Market(spec, way, url, place, screen)
                try:
                    await market.run()
                finally:
                    screen.say("   stopping all processes", "dim")
                    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                        loop.add_signal_handler(number, market.fleet.kill_all)
                    await market.fleet.close()
            expectations += market.expectations
            if all(each.holds for each in market.expectations):
                shutil.rmtree(place, ignore_errors=True)
        screen.leave()
        return _verdict(expectations, screen)


@asynccontextmanager
async def _databases(way: str) -> AsyncIterator[str]:
    """The URL of the databases; empty for files."""
    if way != "xa":
        yield ""
        return
    async with postgres.running(("accounts", "bank", "notification", "orders", "payment", "warehouse")) as url:
        yield url


def _verdict(expectations: list[Expectation], screen: Screen) -> int:
    failed = [each for each in expectations if not each.holds]
    screen.say("")
    for each in failed:
        screen.say(f"NOT SO: {each.text}: {each.observed}", "bold red")
    if failed:
        screen.say(f"{len(failed)} of {len(expectations)} expectations did not hold", "bold red")
        return exits.NO
    screen.say(f"all {len(expectations)} expectations held", "bold green")
    return exits.DONE


class Market:
    """One way: a mesh, a bookstore in it, shoppers, faults, and the count."""

    def __init__(self, spec: TransactionsSpec, way: str, url: str, directory: Path, screen: Screen) -> None:
        self._spec = spec
        self._way = way
        self._url = url
        self._screen = screen
        self._data = directory / "bookstore"
        self._data.mkdir()
        self._api, self._http = opening.usual_ports()
        self._server = f"127.0.0.1:{self._api}"
        told = {
            "REMORA_SERVER": self._server,
            "BOOKSTORE_DIR": str(self._data),
            "BOOKSTORE_DATABASE": url,
            "PURCHASES": way,
            "BANK_SEED": str(spec.seed),
            "XDG_STATE_HOME": str(directory),  # a mesh of its own: other keys than the user's, or another demo's
            "TMPDIR": str(directory),  # what is killed cannot tidy up: its temporary files go with ours
            **opening.DURABILITY,
        }
        self.fleet = Fleet(directory, {**environment.inherited(), **told})
        self.expectations: list[Expectation] = []
        self._rate = XA_RATE if way == "xa" else RATE
        self._count = Reckoning()
        self._started = monotonic()
        self._chaos: Chaos | None = None
        self._crowd: Crowd | None = None
        left_out = SPARE if spec.is_small else ()
        self._instances = [each for each in INSTANCES if each not in left_out]
        self._restart = {
            f"{service}-{version}-{number}": partial(self._start_instance, service, version, number)
            for service, version, number in self._instances
        }
        self._coordinator_ports = dict(enumerate(ports.free(2), 1))

    async def run(self) -> None:
        self._screen.heading(f"{self._way}: {WAYS[self._way]}")
        channel = grpc.aio.insecure_channel(self._server, options=[("grpc.enable_http_proxy", 0)])
        try:
            await self._start(channel)
            await self._shop()
            await self._close_shop()
        finally:
            await channel.close()

    # -- start --------------------------------------------------------------------------------------

    async def _start(self, channel: grpc.aio.Channel) -> None:
        start = monotonic()
        await self._start_control_plane()
        words = ["--dir", str(self._data), "--copies", str(COPIES), "--readers", str(READERS), "--database", self._url]
        code, said = await self.fleet.ask("apps.bookstore.seed", *words)
        if code:
            raise RuntimeError(said.decode())
        await opening.until_up(self.fleet, channel)
        await asyncio.gather(*(self._start_instance(*each) for each in self._instances))
        registry = api_pb2_grpc.RegistryStub(channel)
        for service in dict.fromkeys(service for service, _, _ in self._instances):
            wanted = sum(1 for name, _, _ in self._instances if name == service)
            await opening.until_healthy(self.fleet, registry, service, wanted)
        self._screen.say(f"   {len(self._instances)} instances with a sidecar each, after {monotonic() - start:.1f} s")
        self._screen.say(f"   look from another terminal: export REMORA_SERVER={self._server}; remora status", "dim")
        if self._way != "naive":
            coordinator = f"127.0.0.1:{self._coordinator_ports[1]}"
            self._screen.say(f"   and: export REMORA_TRANSACTIONS={coordinator}; remora tx list", "dim")

    async def _start_control_plane(self) -> None:
        store = self._spec.store or str(self.fleet.directory / "store")
        http = f"127.0.0.1:{self._http}"
        await self.fleet.start(CONTROL_PLANE, "up", "--listen", self._server, "--http", http, "--store", store)

    async def _start_instance(self, service: str, version: str, number: int) -> None:
        engine = opening.engine_of(self._spec.engine, number)
        if service != COORDINATOR:
            await start_instance(self.fleet, service, version, number, engine)
            return
        log = f"sqlite:///{self._data}/transactions.sqlite3"
        module = "apps.transactions.coordinator"
        program = (sys.executable, "-m", module, "--log", log, "--name", f"{COORDINATOR}-{number}", *SERVICES)
        options = ("--port", str(self._coordinator_ports[number]))
        await start_instance(self.fleet, service, version, number, engine, program=program, options=options)

    async def _start_shoppers(self) -> None:
        words = ["--orders", f"orders.{NAMESPACE}:50051", "--rate", str(self._rate), "--seed", str(self._spec.seed)]
        words += ["--readers", str(READERS), "--timeout", "4s", "--every", "0.5s"]
        member = await self.fleet.start(
            SHOPPERS,
            *("run", "--service", f"{SHOPPERS}.{NAMESPACE}", "--engine", opening.engine_of(self._spec.engine, 0), "--"),
            *(sys.executable, "-m", "apps.bookstore.shoppers", *words),
            piped=True,
        )
        assert member.process.stdout is not None
        self._crowd = Crowd(member.process.stdout)

    # -- the shop is open ---------------------------------------------------------------------------

    async def _shop(self) -> None:
        await self._start_shoppers()
        assert self._crowd is not None
        self._screen.show(self._draw, self._lines)
        counting = await self.fleet.start(
            "reckoning", *self._reckoning(), "--every", str(TICK_S), piped=True, module="apps.bookstore.reckoning"
        )
        assert counting.process.stdout is not None
        self._chaos = Chaos(self.fleet, self._restart, self._spec.seed, self._say_fault)
        async with asyncio.TaskGroup() as background:
            tasks = [
                background.create_task(self._crowd.run()),
                background.create_task(self._follow(counting.process.stdout)),
            ]
            await self._crowd.count(1, opening.START_TIMEOUT_S)
            self._screen.say(f"   shoppers buy: {self._rate} purchases a second, seed {self._spec.seed}")
            self._started = monotonic()
            if self._spec.with_chaos:
                tasks.append(background.create_task(self._chaos.run()))
            end = monotonic() + self._spec.for_s
            while monotonic() < end:
                await asyncio.sleep(min(TICK_S, max(0.0, end - monotonic())))
                self._screen.tick()
                await self._revive()
            for each in tasks[2:]:
                each.cancel()
                await asyncio.gather(each, return_exceptions=True)  # a restart that has begun ends
            await self.fleet.stop(SHOPPERS)
            await self.fleet.stop("reckoning")
            for each in tasks[:2]:
                each.cancel()

    async def _revive(self) -> None:
        """Start again what somebody else has killed: the demo may be tormented from outside, too. Raises Failure for what counts."""
        start: dict[str, Callable[[], Awaitable[object]]] = {**self._restart, CONTROL_PLANE: self._start_control_plane}
        for member in self.fleet.ended():
            if member.name not in start:
                continue
            code = child.exit_code(self.fleet.members.pop(member.name).process)
            self._say_fault(f"   {member.name} ended with exit code {code}; starting it again")
            await start[member.name]()
        opening.check_all_alive(self.fleet)

    def _reckoning(self) -> list[str]:
        words = ["--dir", str(self._data), "--database", self._url]
        return [*words, "--patience", str(GIVEN_UP_S)] if self._way == "naive" else words

    async def _follow(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            if line.startswith(b"{"):
                self._count = Reckoning.of(json.loads(line))

    def _say_fault(self, text: str) -> None:
        self._screen.say(f"{text}   ({monotonic() - self._started:.0f} s)", "yellow")

    # -- the end ------------------------------------------------------------------------------------

    async def _close_shop(self) -> None:
        """Wait until no order is open, and count for the last time."""
        self._screen.say("   the shop closes; what is open comes to its end")
        start = monotonic()
        patience_s = SETTLE_TIMEOUT_S if self._way != "naive" else GIVEN_UP_S + 1
        while True:
            await self._revive()
            _, out = await self.fleet.ask(
                "apps.bookstore.reckoning", *self._reckoning(), "-o", "json", with_errors=False
            )
            self._count = Reckoning.of(json.loads(out))
            is_over = not self._count.open_orders and (self._count.adds_up or self._way == "naive")
            if is_over or monotonic() - start > patience_s:
                break
            await asyncio.sleep(TICK_S)
        self._screen.tick()
        faults = self._chaos.faults.total() if self._chaos is not None else 0
        observed = f"{self._count}; {faults} processes killed; settled after {monotonic() - start:.0f} s"
        observed += "".join(f"; {each}" for each in self._count.wrong[:3])
        bought = self._count.orders.get("SETTLED", 0)
        if self._way == "naive" and len(self._spec.ways) > 1:
            self._expect("the naive way loses money or books", observed, not self._count.adds_up)
            return
        text = "money expected = money found, books expected = books found, no order left open"
        self._expect(text, observed, self._count.adds_up and not self._count.open_orders and bought > 0)
        if self._way in COORDINATED:
            words = ("--dir", str(self._data), "--way", self._way, "--database", self._url)
            code, out = await self.fleet.ask("apps.bookstore.history", *words)
            said = "; ".join(out.decode().splitlines()[-4:])
            self._expect("the whole history keeps every invariant of transactions, I1 to I14", said, not code)

    def _expect(self, text: str, observed: str, holds: bool) -> None:
        self.expectations.append(Expectation(f"{self._way}: {text}", observed, holds))
        self._screen.say(f"   expected  {text}")
        self._screen.say(f" {'✓ observed ' if holds else '✗ NOT SO   '} {observed}", "green" if holds else "bold red")

    # -- the screen ---------------------------------------------------------------------------------

    def _lines(self) -> list[str]:
        mark = "" if self._count.adds_up else "   WRONG"
        wrong = [f"        {each}" for each in self._count.wrong[:2]]
        return [f"  {monotonic() - self._started:4.0f} s  {self._count}{mark}", *wrong]

    def _draw(self) -> RenderableType:
        count = self._count
        numbers = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in ("", "expected", "found", "missing"):
            numbers.add_column(column, justify="right" if column else "left", min_width=14, no_wrap=True)
        for name, (expected, found), form in (("money", count.money, cents), ("books", count.books, "{:,}".format)):
            style = "bold green" if expected == found else "bold red"
            numbers.add_row(
                name, form(expected), Text(form(found), style=style), Text(form(expected - found), style=style)
            )
        tally = self._crowd.tally.statuses if self._crowd is not None else {}
        said = ", ".join(
            f"{count} {status}" for status, count in sorted(tally.items(), key=lambda each: each[0] != GOOD)
        )
        killed = self._chaos.faults.total() if self._chaos is not None else 0
        about = Text(
            f"orders: {count.orders.get('SETTLED', 0)} bought, {count.orders.get('REJECTED', 0)} refused, "
            f"{count.open_orders} open; {killed} processes killed\nanswers to shoppers: {said or 'none yet'}"
        )
        wrong = [Text(each, style="red", no_wrap=True, overflow="ellipsis") for each in count.wrong[:3]]
        style = "green" if count.adds_up else "red"
        return Group(
            Rule(f"{self._way}, {monotonic() - self._started:.0f} s", style="dim", align="left"),
            Panel(Group(numbers, about, *wrong), border_style=style),
        )
