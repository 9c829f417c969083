"""The tour: what a user types, what is expected, what was observed.

Bounds on shares are four standard deviations of a fair draw, so that a correct mesh fails a step less than once in ten thousand runs.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from time import monotonic
from typing import Final

import grpc

from proto.mesh.v1 import api_pb2, api_pb2_grpc, service_pb2
from remora.demo.crowd import GOOD, REFUSED, Crowd
from remora.demo.fleet import Fleet
from remora.demo.observe import Observer
from remora.demo.screen import Screen

NAMESPACE: Final = "shop"
LEASE_S: Final = 5.0
"""Of the demo's instances; the shortest that there is, so that a killed one is soon gone."""
LEASE_SLACK_S: Final = 3.0
SAMPLE: Final = 240
"""Purchases that a step looks at."""
LONGEST_SAMPLE_S: Final = 15.0
LIMIT_S: Final = 4.0
"""How long a limited service is watched."""
LIMIT_PER_S: Final = 20
"""As in `limit-orders.yaml`."""
FOLLOWED_WITHIN_S: Final = 1.0
REPORTED_WITHIN_S: Final = 0.5
"""A call ends after it was sent, and the shoppers report now and then."""
SIGMAS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """One thing that must be so."""

    text: str
    observed: str
    holds: bool


def _evenly(counts: list[int], shares: list[float]) -> bool:
    """True if counts agree with the shares of a fair draw."""
    total = sum(counts)
    return total > 0 and all(
        abs(count - share * total) <= SIGMAS * sqrt(total * share * (1 - share)) + 2
        for count, share in zip(counts, shares, strict=True)
    )


class Tour:
    """Runs the steps and keeps what was expected and observed."""

    def __init__(
        self, fleet: Fleet, observer: Observer, crowd: Crowd, screen: Screen, channel: grpc.aio.Channel, files: Path
    ) -> None:
        self._fleet = fleet
        self._observer = observer
        self._crowd = crowd
        self._screen = screen
        self._registry = api_pb2_grpc.RegistryStub(channel)
        self._files = files
        self._step = 0
        self.expectations: list[Expectation] = []

    def expect(self, text: str, observed: str, holds: bool) -> None:
        """Note an expectation and show how it went."""
        self.expectations.append(Expectation(text, observed, holds))
        self._screen.say(f"   expected  {text}")
        self._screen.say(f" {'✓ observed ' if holds else '✗ NOT SO   '} {observed}", "green" if holds else "bold red")

    def _heading(self, text: str) -> None:
        self._step += 1
        self._screen.heading(f"{self._step}. {text}")

    async def _type(self, *words: str) -> float:
        """Run a command as a user would; the seconds that it took. A command that fails is a failed expectation."""
        self._screen.type(f"remora {' '.join(words)}")
        start = monotonic()
        code, out = await self._fleet.ask("remora", *words)
        for line in out.decode().splitlines():
            self._screen.say(f"     {line}", "dim")
        if code:
            self.expect("the command succeeds", f"exit code {code}", False)
        return monotonic() - start

    def _file(self, name: str) -> str:
        path = self._files / name
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    async def _endpoints(self, service: str) -> list[service_pb2.Instance]:
        """The instances that get calls."""
        request = api_pb2.ListInstancesRequest(service=service, namespace=NAMESPACE)
        answer = await self._registry.ListInstances(request, timeout=5)
        return [instance for instance in answer.instances if instance.health == service_pb2.HEALTHY]

    async def _until(self, condition: Callable[[], Awaitable[bool]], longest_s: float) -> float:
        """Seconds until the condition held, or the longest time."""
        start = monotonic()
        while not await condition() and monotonic() - start < longest_s:
            await asyncio.sleep(0.02)
        return monotonic() - start

    # -- steps --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All steps, in order."""
        for step in (
            self._spread,
            self._splits,
            self._kill,
            self._stop,
            self._join,
            self._limit,
            self._unlimit,
        ):
            await step()

    async def three_data_planes(self) -> None:
        """Of a mixed fleet: each kind is there, and takes what it is told."""
        await self._type("status")
        nodes = await self._observer.nodes()
        engines = Counter(node.engine for node in nodes)
        refused = [node.id for node in nodes if any(each.version_nacked for each in node.types)]
        self.expect(
            "one mesh of three data planes: Remora's sidecar, Envoy, gRPC's own; none refuses what it is told",
            ", ".join(f"{count} {engine}" for engine, count in sorted(engines.items())) + f"; {len(refused)} refuse",
            set(engines) == {"remora", "envoy", "grpc"} and not refused,
        )

    async def _spread(self) -> None:
        self._heading("Calls are spread over the instances of a service")
        await self._type("endpoints", f"warehouse.{NAMESPACE}")
        seen = await self._crowd.count(SAMPLE, LONGEST_SAMPLE_S)
        counts = sorted(seen.instances.values())
        names = ", ".join(f"{version}/{name} {count}" for (version, name), count in sorted(seen.instances.items()))
        self.expect(
            "four instances of the warehouse, a quarter of the calls each; no call fails",
            f"{names}; {seen.failed} failed",
            len(counts) == 4 and _evenly(counts, [0.25] * 4) and not seen.failed,
        )

    async def _splits(self) -> None:
        await self._type("apply", "--wait", "-f", self._file("services.yaml"))
        for old, new in ((90, 10), (50, 50), (0, 100)):
            self._heading(f"A split by weight: {old} % to version v1, {new} % to v2")
            before = self._crowd.tally
            typing = await self._type("apply", "--wait", "-f", self._file(f"split-{old}-{new}.yaml"))
            followed = await self._followed() if not old else 0.0
            seen = await self._crowd.count(SAMPLE, LONGEST_SAMPLE_S)
            share = seen.versions["v2"] / max(1, sum(seen.versions.values()))
            failed = self._crowd.tally.since(before).failed
            self.expect(
                f"v2 takes {new} % of the calls, within {SIGMAS:g} standard deviations; no call fails",
                f"v2 took {share:.1%} of {seen.calls}; {failed} failed",
                _evenly([seen.versions["v1"], seen.versions["v2"]], [old / 100, new / 100]) and not failed,
            )
            if not old:
                self.expect(
                    f"the old version gets its last call within {FOLLOWED_WITHIN_S:g} s",
                    f"the last one ended {followed:.2f} s after the command did, which took {typing:.2f} s",
                    followed <= FOLLOWED_WITHIN_S + REPORTED_WITHIN_S,
                )
        await self._type("delete", "--wait", "grpcroute", "warehouse-split", "-n", NAMESPACE)

    async def _followed(self) -> float:
        """Seconds from now until v1 was seen to end a call for the last time; what comes late was under way before."""
        start = last = quiet_since = monotonic()
        known = self._crowd.tally.versions["v1"]
        while monotonic() - quiet_since < FOLLOWED_WITHIN_S and monotonic() - start < 5 * FOLLOWED_WITHIN_S:
            now = (await self._crowd.fresh()).versions["v1"]
            if now != known:
                known, last, quiet_since = now, monotonic(), monotonic()
        return last - start

    async def _kill(self) -> None:
        victim = "warehouse-v1-2"
        self._heading(f"An instance dies: {victim} is killed, with its sidecar (SIGKILL)")
        before = self._crowd.tally
        await self._fleet.kill(victim)

        async def is_gone() -> bool:
            return len(await self._endpoints("warehouse")) == 3

        took = await self._until(is_gone, LEASE_S + 3 * LEASE_SLACK_S)
        self.expect(
            f"it leaves the endpoints when its lease of {LEASE_S:g} s ends",
            f"gone after {took:.1f} s",
            took <= LEASE_S + LEASE_SLACK_S,
        )
        seen = self._crowd.tally.since(before)
        self.expect(
            "calls that find it gone are sent elsewhere: purchases go on",
            f"{seen.statuses[GOOD]} of {seen.calls} purchases done meanwhile, {seen.failed} failed",
            seen.calls > 0 and seen.failed <= seen.calls * 0.02,
        )

    async def _stop(self) -> None:
        victim = "warehouse-v2-2"
        self._heading(f"An instance is stopped: {victim} gets SIGTERM, and drains")
        before = self._crowd.tally
        start = monotonic()
        stopping = asyncio.create_task(self._fleet.stop(victim))

        async def is_gone() -> bool:
            return len(await self._endpoints("warehouse")) == 2

        took = await self._until(is_gone, LEASE_S)
        code = await stopping
        seen = (await self._crowd.count(SAMPLE // 2, LONGEST_SAMPLE_S), self._crowd.tally.since(before))[1]
        self.expect(
            "it gets no new calls at once, and not one call fails",
            f"out after {took:.2f} s, stopped after {monotonic() - start:.1f} s with exit code {code}; "
            f"{seen.failed} of {seen.calls} failed, {seen.repeats} repeated",
            took <= 1.0 and not seen.failed and not seen.repeats,
        )

    async def _join(self) -> None:
        self._heading("A new instance joins")
        await start_instance(self._fleet, "warehouse", "v2", 3)

        async def is_there() -> bool:
            return len(await self._endpoints("warehouse")) == 3

        took = await self._until(is_there, LONGEST_SAMPLE_S)
        seen = await self._crowd.count(SAMPLE // 2, LONGEST_SAMPLE_S)
        count = seen.instances["v2", "warehouse-v2-3"]
        self.expect(
            "once it is healthy it takes a third of the calls",
            f"registered {took:.1f} s after its start, took {count} of {seen.calls}; {seen.failed} failed",
            _evenly([count, seen.statuses[GOOD] - count], [1 / 3, 2 / 3]) and not seen.failed,
        )

    async def _limit(self) -> None:
        self._heading(f"A rate limit protects orders: {LIMIT_PER_S} purchases a second")
        await self._type("apply", "--wait", "-f", self._file("limit-orders.yaml"))
        await self._observer.look()
        before = (await self._crowd.fresh(), sum(self._observer.last.limited.values()))
        start = monotonic()
        await asyncio.sleep(LIMIT_S)
        seen = (await self._crowd.fresh()).since(before[0])
        span = monotonic() - start
        await self._observer.look()
        counted = sum(self._observer.last.limited.values()) - before[1]
        rate = seen.statuses[GOOD] / span
        self.expect(
            f"about {LIMIT_PER_S} purchases a second pass, the rest is refused and counted",
            f"{rate:.1f}/s done, {seen.statuses[REFUSED]} refused (the mesh counts {counted}), {seen.failed} failed",
            0.75 * LIMIT_PER_S <= rate <= 1.3 * LIMIT_PER_S + LIMIT_PER_S / span
            and seen.statuses[REFUSED] > 0
            and counted >= seen.statuses[REFUSED] > 0
            and not seen.failed,
        )
        self._screen.take_picture()

    async def _unlimit(self) -> None:
        self._heading("The policy is deleted, and calls flow again")
        await self._type("delete", "--wait", "ratelimitpolicy", "orders-limit", "-n", NAMESPACE)
        await self._crowd.fresh()
        await self._crowd.fresh()
        seen = await self._crowd.count(SAMPLE // 2, LONGEST_SAMPLE_S)
        self.expect(
            "no purchase is refused any more",
            f"{seen.statuses[GOOD]} of {seen.calls} done, {seen.statuses[REFUSED]} refused",
            seen.calls > 0 and seen.statuses[GOOD] == seen.calls,
        )


async def start_instance(
    fleet: Fleet,
    service: str,
    version: str,
    number: int,
    engine: str = "remora",
    *,
    program: Sequence[str] = (),
    options: Sequence[str] = (),
) -> str:
    """One instance of a bookstore service, or of another program, with its sidecar; its name. `options`: of `remora run`."""
    name = f"{service}-{version}-{number}"
    command = program or (sys.executable, "-m", f"apps.bookstore.{service}")
    await fleet.start(
        name,
        *("run", "--service", f"{service}.{NAMESPACE}", "--version", version, "--instance", name),
        *("--ttl", f"{LEASE_S:g}s", "--engine", engine, *options, "--", *command),
        env={"VERSION": version, "INSTANCE": name},
    )
    return name
