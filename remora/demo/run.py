"""`remora demo`: a mesh from nothing, the tour, the audit, and everything gone again."""

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import grpc
import uvloop

from proto.mesh.v1 import api_pb2_grpc
from remora import environment, exits
from remora.addresses import UsageError
from remora.demo import opening
from remora.demo.crowd import Crowd
from remora.demo.fleet import CONTROL_PLANE, SHOPPERS, Fleet
from remora.demo.observe import INTERVAL_S, Observer
from remora.demo.screen import Screen
from remora.demo.tour import NAMESPACE, Tour, start_instance

INSTANCES: Final = (
    ("accounts", "v1", 1),
    ("warehouse", "v1", 1),
    ("warehouse", "v1", 2),
    ("warehouse", "v2", 1),
    ("warehouse", "v2", 2),
    ("orders", "v1", 1),
)
"""Service, version, number."""
_PROXYLESS_TARGET: Final = f"xds:///orders.{NAMESPACE}"
SETTLE_TIMEOUT_S: Final = 20.0
RATE: Final = 80
"""Purchases a second."""
SEED: Final = 7
SERVICES: Final = Path(__file__).resolve().parents[2] / "apps" / "bookstore" / "mesh"


@dataclass(frozen=True, slots=True)
class DemoSpec:
    """What the command line asked for."""

    for_s: float
    """Load runs at least so long, and until the tour is over."""
    engine: str = "remora"
    store: str | None = None
    picture: Path | None = None
    """Where to write a picture of the screen in the middle of the tour; None for nowhere."""


def run_demo(spec: DemoSpec) -> int:
    """Run the demo; the exit code: 0 only if all expectations held. Raises UsageError, Failure."""
    if spec.engine not in opening.ENGINES:
        raise UsageError(f'--engine: "{spec.engine}" is not known; known: {", ".join(opening.ENGINES)}')
    directory = Path(tempfile.mkdtemp(prefix="remora-demo-"))
    is_clean = False
    try:
        code = uvloop.run(_run(spec, directory))
        is_clean = code in (exits.DONE, exits.INTERRUPTED)
        return code
    except asyncio.CancelledError:
        is_clean = True
        return exits.INTERRUPTED
    finally:
        if is_clean:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"the logs of all processes are kept in {directory}", file=sys.stderr)


async def _run(spec: DemoSpec, directory: Path) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    data = directory / "bookstore"
    data.mkdir()
    api, http = opening.usual_ports()
    server = f"127.0.0.1:{api}"
    # What is killed cannot tidy up: its temporary files go with ours.
    told = {
        "REMORA_SERVER": server,
        "BOOKSTORE_DIR": str(data),
        "TMPDIR": str(directory),
        "XDG_STATE_HOME": str(directory),
        **opening.DURABILITY,
    }
    fleet = Fleet(directory, {**environment.inherited(), **told})
    with Screen(task.cancel, spec.picture) as screen:
        try:
            tour = await Demo(spec, fleet, screen, server, f"127.0.0.1:{http}", data).run()
        finally:
            screen.leave()
            screen.say("")
            screen.say("stopping all processes", "dim")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, fleet.kill_all)
            await fleet.close()
        return _verdict(tour, screen)


class Demo:
    """One demo, from start to verdict."""

    def __init__(self, spec: DemoSpec, fleet: Fleet, screen: Screen, server: str, http: str, data: Path) -> None:
        self._spec = spec
        self._fleet = fleet
        self._screen = screen
        self._server = server
        self._http = http
        self._data = data

    async def run(self) -> Tour:
        """The tour, once it is over."""
        channel = grpc.aio.insecure_channel(self._server, options=[("grpc.enable_http_proxy", 0)])
        observer = Observer(self._server)
        try:
            await self._start(channel)
            shoppers = await self._start_shoppers()
            assert shoppers.stdout is not None
            crowd = Crowd(shoppers.stdout)
            tour = Tour(self._fleet, observer, crowd, self._screen, channel, SERVICES)
            async with asyncio.TaskGroup() as background:
                background.create_task(crowd.run())
                watching = background.create_task(self._watch(observer))
                await self._tour(tour)
                watching.cancel()
            return tour
        finally:
            await observer.close()
            await channel.close()

    async def _tour(self, tour: Tour) -> None:
        start = monotonic()
        before = await self._audit()
        tour.expect("money and stock are complete at the start", _counted(before), not before["wrong"])
        if self._spec.engine == "mixed":
            await tour.three_data_planes()
        await tour.run()
        await asyncio.sleep(max(0.0, self._spec.for_s - (monotonic() - start)))
        await self._settle(tour)

    async def _watch(self, observer: Observer) -> None:
        self._screen.show_live(lambda: observer.view)
        while True:
            await observer.look()
            self._screen.tick()
            await asyncio.sleep(INTERVAL_S)

    # -- start --------------------------------------------------------------------------------------

    async def _start(self, channel: grpc.aio.Channel) -> None:
        start = monotonic()
        screen = self._screen
        screen.say("A bookstore in a mesh: every instance is a plain gRPC program with a sidecar of its own.", "bold")
        screen.say("")
        store = self._spec.store or str(self._fleet.directory / "store")
        screen.type(f"remora up --listen {self._server} --http {self._http} --store {store}")
        await self._fleet.start(CONTROL_PLANE, "up", "--listen", self._server, "--http", self._http, "--store", store)
        await opening.until_up(self._fleet, channel)
        screen.type(
            "remora run --service warehouse.shop --version v1 -- python -m apps.bookstore.warehouse  # and so on"
        )
        for number, (service, version, copy) in enumerate(INSTANCES):
            await start_instance(self._fleet, service, version, copy, opening.engine_of(self._spec.engine, number))
        registry = api_pb2_grpc.RegistryStub(channel)
        for service in dict.fromkeys(service for service, _, _ in INSTANCES):
            wanted = sum(1 for name, _, _ in INSTANCES if name == service)
            await opening.until_healthy(self._fleet, registry, service, wanted)
            screen.say(f"   {service}.{NAMESPACE}: {wanted} healthy ({monotonic() - start:.1f} s)")
        if self._server != "127.0.0.1:15010":
            screen.say(f"   from another terminal: export REMORA_SERVER={self._server}", "dim")
        screen.say("   look from another terminal: remora status; remora endpoints warehouse.shop", "dim")

    async def _start_shoppers(self) -> asyncio.subprocess.Process:
        if self._spec.engine == "mixed":
            return await self._start_proxyless_shoppers()
        words = ["--orders", f"orders.{NAMESPACE}:50051", "--rate", str(RATE), "--seed", str(SEED), "--every", "0.2s"]
        member = await self._fleet.start(
            SHOPPERS,
            *("run", "--service", f"{SHOPPERS}.{NAMESPACE}", "--engine", opening.engine_of(self._spec.engine, 0), "--"),
            *(sys.executable, "-m", "apps.bookstore.shoppers", *words),
            piped=True,
        )
        self._screen.say(f"   shoppers buy: {RATE} purchases a second, seed {SEED}")
        return member.process

    async def _start_proxyless_shoppers(self) -> asyncio.subprocess.Process:
        """Without a sidecar: the program's own gRPC library is the data plane."""
        screen = self._screen
        words = ("--engine", "grpc", "--service", f"{SHOPPERS}.{NAMESPACE}", "--node", SHOPPERS)
        screen.type(f"remora bootstrap {' '.join(words)} > shoppers.json")
        _, made = await self._fleet.ask("remora", "bootstrap", *words, with_errors=False)
        file = self._fleet.directory / "shoppers.json"
        file.write_bytes(made)
        screen.type(f"GRPC_XDS_BOOTSTRAP=shoppers.json python -m apps.bookstore.shoppers --orders {_PROXYLESS_TARGET}")
        member = await self._fleet.start(
            SHOPPERS,
            *("--orders", _PROXYLESS_TARGET, "--rate", str(RATE), "--seed", str(SEED), "--every", "0.2s"),
            env={"GRPC_XDS_BOOTSTRAP": str(file)},
            piped=True,
            module="apps.bookstore.shoppers",
        )
        screen.say(f"   shoppers buy, with no sidecar: {RATE} purchases a second, seed {SEED}")
        return member.process

    # -- end ----------------------------------------------------------------------------------------

    async def _settle(self, tour: Tour) -> None:
        """Shoppers go home; every order that is still open is settled by `orders` itself; then all is counted."""
        self._screen.heading("The shop closes: is all the money and every book accounted for?")
        await self._fleet.stop(SHOPPERS)
        end = monotonic() + SETTLE_TIMEOUT_S
        while True:
            found = await self._audit()
            is_complete = not found["wrong"] and not _open(found)
            if is_complete or monotonic() > end:
                break
            await asyncio.sleep(0.2)
        tour.expect(
            "money expected = money found, stock expected = stock found, no order left open",
            f"{_counted(found)}; {sum(found['orders'].values())} orders, {_open(found)} open"
            + "".join(f"; {sentence}" for sentence in found["wrong"][:3]),
            is_complete,
        )

    async def _audit(self) -> dict[str, Any]:
        words = ("--dir", str(self._data), "-o", "json")
        _, out = await self._fleet.ask("apps.bookstore.audit", *words, with_errors=False)
        found: dict[str, Any] = json.loads(out)
        return found


def _verdict(tour: Tour, screen: Screen) -> int:
    """Say what did not hold; the exit code."""
    failed = [item for item in tour.expectations if not item.holds]
    total = len(tour.expectations)
    screen.say("")
    for item in failed:
        screen.say(f"NOT SO: {item.text}: {item.observed}", "bold red")
    if failed:
        screen.say(f"{len(failed)} of {total} expectations did not hold", "bold red")
        return exits.NO
    screen.say(f"all {total} expectations held", "bold green")
    return exits.DONE


def _open(found: dict[str, Any]) -> int:
    """Orders that are still to be seen through."""
    return sum(count for state, count in found["orders"].items() if state not in ("SETTLED", "REJECTED"))


def _counted(found: dict[str, Any]) -> str:
    money, stock = found["money_cents"], found["stock"]
    return f"money {money['found']:,} of {money['expected']:,} cents, stock {stock['found']:,} of {stock['expected']:,} books"
