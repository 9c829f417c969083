"""Targets that stand ready: a way from the load to a backend, started once and kept while rows need it."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import backends
from benchmarks.backends import Backend
from benchmarks.load.generate import one_call
from benchmarks.load.wire import LoadError
from benchmarks.processes import BenchError, Process, Processes
from benchmarks.proxies import PROXIES, Certificate, Wiring

FIRST_CALL_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Setup:
    """How a target is set up."""

    backend: Backend = Backend.ECHO
    routes: int = 1
    is_tls: bool = False
    """Between the load and the first proxy."""
    is_pinned: bool = False
    """The proxy alone on one core, load and backend on the others."""


@dataclass(frozen=True, slots=True)
class Way:
    """One column of a row."""

    label: str
    proxy: str
    """A name in `proxies.PROXIES`."""
    setup: Setup


@dataclass(frozen=True, slots=True)
class Target:
    """A way that runs."""

    way: Way
    port: int
    processes: tuple[Process, ...]
    """The proxy's: none for the direct way."""
    load_cpus: frozenset[int] | None

    @property
    def pace(self) -> float:
        """How many calls it gets, in proportion to others."""
        return PROXIES[self.way.proxy].pace

    def cpu_s(self) -> float:
        """CPU seconds of the proxy's processes so far."""
        return sum(process.cpu_s() for process in self.processes)

    def rss_mib(self) -> float:
        """Resident memory of the proxy's processes, MiB."""
        return sum(process.rss_mib() for process in self.processes)

    def await_first_call(self) -> float:
        """Call until a call succeeds; returns the time when it did. Raises BenchError."""
        end = time.monotonic() + FIRST_CALL_TIMEOUT_S
        while True:
            for process in self.processes:
                process.check()
            try:
                one_call(self.port)
                return time.perf_counter()
            except (LoadError, OSError) as error:
                if time.monotonic() > end:
                    raise BenchError(f"no call succeeded in {FIRST_CALL_TIMEOUT_S:g} s; the last: {error}") from None
                time.sleep(_POLL_S)


def cores() -> tuple[frozenset[int], frozenset[int]] | None:
    """(the proxy's core, all others), or None on a machine with one."""
    cpus = sorted(os.sched_getaffinity(0))
    return (frozenset(cpus[-1:]), frozenset(cpus[:-1])) if len(cpus) > 1 else None


class Fleet:
    """Starts targets, and the backends behind them."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.documents: Path = processes.scratch / "documents"
        self.documents.mkdir()
        self.messages = backends.write_messages(self.documents)
        """By size of the payload."""
        self._targets: dict[Way, Target] = {}
        self._backends: dict[tuple[Backend, bool], tuple[int, Process]] = {}
        self._certificate: Certificate | None = None

    def keep_only(self, ways: Iterable[Way]) -> None:
        """Stop the targets and backends that these ways do not need."""
        wanted = set(ways)
        for way in [way for way in self._targets if way not in wanted]:
            self._processes.stop(self._targets.pop(way).processes)
        used = {(way.setup.backend, way.setup.is_pinned) for way in wanted}
        for key in [key for key in self._backends if key not in used]:
            self._processes.stop([self._backends.pop(key)[1]])

    def target(self, way: Way) -> Target:
        """The running target of a way, ready for calls. Raises BenchError."""
        found = self._targets.get(way)
        if found is None:
            found = self._targets[way] = self.start(way)
            for process in found.processes:
                process.check()
            if way.setup.is_tls:
                found.processes[0].await_port(found.port)
            else:
                found.await_first_call()
        return found

    def start(self, way: Way) -> Target:
        """A new target, which may not be ready yet; the caller stops it, or `target` keeps it."""
        setup = way.setup
        split = cores() if setup.is_pinned else None
        load_cpus = split[1] if split else None
        backend = self._backend(setup, load_cpus)
        if setup.is_tls and self._certificate is None:
            self._certificate = Certificate.make(self._processes.scratch)
        certificate = self._certificate if setup.is_tls else None
        wiring = Wiring(backend, setup.routes, certificate, split[0] if split else None)
        port, started = PROXIES[way.proxy].start(self._processes, wiring)
        return Target(way, port, started, load_cpus)

    def stop(self, target: Target) -> None:
        """End a target that `start` gave."""
        self._processes.stop(target.processes)

    def _backend(self, setup: Setup, cpus: frozenset[int] | None) -> int:
        key = (setup.backend, setup.is_pinned)
        if key not in self._backends:
            self._backends[key] = backends.start(setup.backend, self._processes, self.documents, cpus)
        return self._backends[key][0]
