"""What a row does to a target: one load, its figures. A load in which a call failed raises LoadError: it has no figures."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from benchmarks.backends import SMALL
from benchmarks.fleet import Fleet, Target
from benchmarks.load import h2load
from benchmarks.load.wire import LoadError
from benchmarks.processes import ROOT, on_cpus

Sample = dict[str, float]
"""Figures by metric (see `METRICS`)."""

Measure = Callable[[Fleet, Target, float], Sample]
"""Loads a target once. The last argument is the number of calls in proportion to a full run."""

GENERATOR_TIMEOUT_S: Final = 300.0
SETTLE_S: Final = 1.0
"""Before memory is read: allocators give back late."""
_RSS_STEP_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure means."""

    title: str
    unit: str
    digits: int
    """Behind the decimal point, where it is shown."""


def spread(values: list[float], digits: int) -> tuple[str, str, str]:
    """Lowest, median and highest, as they are shown."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return low, middle, high


METRICS: Final = {
    "cpu_us": Metric("CPU per call", "µs", 1),
    "message_us": Metric("CPU per message", "µs", 1),
    "calls_per_s": Metric("calls per second", "1/s", 0),
    "mb_per_s": Metric("messages carried", "MB/s", 0),
    "cores": Metric("CPU used", "cores", 2),
    "p50_ms": Metric("latency p50", "ms", 3),
    "p99_ms": Metric("latency p99", "ms", 3),
    "added_p50_ms": Metric("added latency p50", "ms", 3),
    "added_p99_ms": Metric("added latency p99", "ms", 3),
    "idle_mib": Metric("RSS idle", "MiB", 1),
    "loaded_mib": Metric("RSS under load", "MiB", 1),
    "start_ms": Metric("start to first call", "ms", 0),
}


def _cost(target: Target, cpu_s: float, calls: int, seconds: float) -> Sample:
    """What a load of so many calls in so many seconds used, if there is a proxy that could use it."""
    sample = {"calls_per_s": calls / seconds}
    if target.processes:
        sample |= {"cpu_us": cpu_s / calls * 1e6, "cores": cpu_s / seconds}
    return sample


def unary(in_flight: int, size: int, calls: int) -> Measure:
    """h2load: the next call as soon as one ends, always so many in flight."""

    def measure(fleet: Fleet, target: Target, scale: float) -> Sample:
        count = max(in_flight, int(calls * scale * target.pace))
        message = fleet.messages[size]
        before = target.cpu_s()
        seconds = h2load.run(
            target.port,
            message.path,
            calls=count,
            in_flight=in_flight,
            body=message.body,
            is_tls=target.way.setup.is_tls,
            cpus=target.load_cpus,
        )
        sample = _cost(target, target.cpu_s() - before, count, seconds)
        return sample | {"mb_per_s": count * size / seconds / 1e6}

    return measure


def _generate(words: Sequence[str], cpus: frozenset[int] | None) -> dict[str, float]:
    """Run `benchmarks.load` with these words; its figures. Raises LoadError."""
    with on_cpus(cpus):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=GENERATOR_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise LoadError(said[-1] if said else f"the generator ended with {done.returncode}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def differing(in_flight: int, calls: int) -> Measure:
    """Small unary calls, each with a deadline, a trace, a user's header and a token that no other call has."""

    def measure(fleet: Fleet, target: Target, scale: float) -> Sample:
        count = max(in_flight, int(calls * scale * target.pace))
        words = ["closed", "--differ", "--port", str(target.port), "--calls", str(count), "--size", str(SMALL)]
        before = target.cpu_s()
        seconds = _generate([*words, "--in-flight", str(in_flight)], target.load_cpus)["seconds"]
        return _cost(target, target.cpu_s() - before, count, seconds)

    return measure


def streams(in_flight: int, messages: int, calls: int) -> Measure:
    """Bidi streams, each with so many small messages to and fro."""

    def measure(fleet: Fleet, target: Target, scale: float) -> Sample:
        count = max(in_flight, int(calls * scale * target.pace))
        words = ["streams", "--port", str(target.port), "--calls", str(count), "--messages", str(messages)]
        before = target.cpu_s()
        seconds = _generate([*words, "--in-flight", str(in_flight)], target.load_cpus)["seconds"]
        sample = _cost(target, target.cpu_s() - before, count, seconds)
        if target.processes:
            sample["message_us"] = sample["cpu_us"] / messages
        return sample

    return measure


class OpenLoop:
    """Calls at a fixed rate, the same for all: half of what the slower of the two that are compared can take."""

    def __init__(self, calls: int, compared: tuple[str, str], most_per_s: float) -> None:
        self._calls = calls
        self._compared = compared
        self._most_per_s = most_per_s
        """What the generator can time well."""
        self.rate = 0.0

    def prepare(self, fleet: Fleet, targets: Sequence[Target], scale: float) -> str:
        """Find the rate; says what it is."""
        saturate = unary(100, SMALL, self._calls)
        speeds = {target.way.label: saturate(fleet, target, scale)["calls_per_s"] for target in targets}
        limits = [speeds[label] for label in self._compared if label in speeds] or list(speeds.values())
        self.rate = min(self._most_per_s, min(limits) / 2)
        for target in targets:
            self.sample(fleet, target, scale / 4)
        return f"{self.rate:.0f} calls per second"

    def sample(self, fleet: Fleet, target: Target, scale: float) -> Sample:
        """Latencies from the intended start."""
        count = max(500, int(self._calls * scale))
        words = ["open", "--port", str(target.port), "--calls", str(count), "--rate", str(self.rate)]
        before = target.cpu_s()
        figures = _generate([*words, "--size", str(SMALL)], target.load_cpus)
        sample = {f"{name}_ms": seconds * 1e3 for name, seconds in figures.items() if name in ("p50", "p99")}
        if target.processes:
            sample["cpu_us"] = (target.cpu_s() - before) / count * 1e6
        return sample

    @staticmethod
    def complete(samples: dict[str, Sample]) -> None:
        """What each way adds to the direct one of the same round."""
        direct = samples.get("direct")
        if direct is None:
            return
        for label, sample in samples.items():
            if label != "direct":
                for percent in ("p50", "p99"):
                    sample[f"added_{percent}_ms"] = sample[f"{percent}_ms"] - direct[f"{percent}_ms"]


def start_time(fleet: Fleet, target: Target, scale: float) -> Sample:
    """From the start of a process to the end of the first call that succeeds. For a target that was started just now."""
    return {"start_ms": (target.await_first_call() - target.processes[0].started) * 1e3}


def memory(in_flight: int, calls: int) -> Measure:
    """Resident memory before any call but one, and at most while so many calls run. For a fresh target."""
    load = unary(in_flight, SMALL, calls)

    def measure(fleet: Fleet, target: Target, scale: float) -> Sample:
        target.await_first_call()
        time.sleep(SETTLE_S)
        sample = {"idle_mib": target.rss_mib()}
        highest = sample["idle_mib"]
        is_over = threading.Event()

        def watch() -> None:
            nonlocal highest
            while not is_over.wait(_RSS_STEP_S):
                highest = max(highest, target.rss_mib())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            load(fleet, target, scale)
        finally:
            is_over.set()
            watcher.join()
        return sample | {"loaded_mib": max(highest, target.rss_mib())}

    return measure
