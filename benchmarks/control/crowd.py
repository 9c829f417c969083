"""All simulated nodes of one control plane: processes that are told what to do together."""

import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.control import mesh
from benchmarks.control.simulator import LINE_BYTES
from benchmarks.processes import BenchError, Process, Processes

ANSWER_TIMEOUT_S: Final = 600.0
"""For anything; what takes long by nature has a time of its own."""
QUIET_S: Final = 0.3
"""No response for so long: all has been said."""
QUIET_TIMEOUT_S: Final = 120.0
CONNECT_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How many nodes there are, and how they connect."""

    streams: int
    services: int
    per_connection: int
    variant: str
    client: str
    processes: int


@dataclass(frozen=True, slots=True)
class Counters:
    """What the nodes have received and sent so far."""

    responses: Counter[str]
    """By type."""
    received: int
    carried: int
    """Bytes of messages; `received` is all that came over the wire."""
    sent: int
    cpu_s: float
    """Of the simulators."""


class Crowd:
    """Starts the simulators; `open` brings their nodes up. Raises BenchError for whatever goes wrong in any of them."""

    def __init__(self, processes: Processes, port: int, shape: Shape) -> None:
        self.shape = shape
        self._processes = processes
        self._started: list[Process] = []
        self._sockets: list[socket.socket] = []
        count = min(shape.processes, shape.streams)
        with socket.create_server(("127.0.0.1", 0)) as control:
            control.settimeout(CONNECT_TIMEOUT_S)
            for number in range(count):
                first = shape.streams * number // count
                words = ["--port", port, "--control", control.getsockname()[1], "--variant", shape.variant]
                words += ["--client", shape.client, "--first", first]
                words += ["--count", shape.streams * (number + 1) // count - first]
                words += ["--per-connection", shape.per_connection, "--services", shape.services]
                program = [sys.executable, "-m", "benchmarks.control.simulator"]
                simulator = processes.start([*program, *map(str, words), "--service", mesh.SERVICE])
                self._started.append(simulator)
                try:
                    connection, _ = control.accept()
                except TimeoutError:
                    simulator.check()
                    raise BenchError(f"a simulator did not start in {CONNECT_TIMEOUT_S:g} s") from None
                connection.settimeout(ANSWER_TIMEOUT_S)
                self._sockets.append(connection)
        self._lines = [connection.makefile("rb") for connection in self._sockets]

    def _tell(self, **command: Any) -> list[dict[str, Any]]:
        """Give all the same command; their answers."""
        line = json.dumps(command).encode() + b"\n"
        for connection in self._sockets:
            connection.sendall(line)
        answers = [
            json.loads(lines.readline(LINE_BYTES) or b'{"failed": "a simulator ended"}') for lines in self._lines
        ]
        for answer in answers:
            if "failed" in answer:
                raise BenchError(f"{self.shape.variant}: {answer['failed']}")
        return answers

    def open(self) -> None:
        """Bring all nodes up; returns when they have all that they asked for."""
        self._tell(do="open")
        self.quiet()

    def expect(self, marks: Sequence[str]) -> None:
        """From now on look for these marks."""
        self._tell(do="expect", marks=list(marks))

    def collect(self, timeout_s: float) -> dict[str, list[float]]:
        """By number of the mark: the monotonic time at which each node ACKed it. Raises BenchError if one did not in time."""
        answers = self._tell(do="collect", timeout_s=timeout_s)
        missing = sum(answer["missing"] for answer in answers)
        if missing:
            raise BenchError(f"{missing} ACKs were missing after {timeout_s:g} s")
        times: dict[str, list[float]] = {}
        for answer in answers:
            for mark, found in answer["times"].items():
                times.setdefault(mark, []).extend(found)
        return times

    def counters(self) -> Counters:
        """The sum over all simulators."""
        answers = self._tell(do="counters")
        responses: Counter[str] = Counter()
        for answer in answers:
            responses.update(answer["responses"])
        return Counters(
            responses,
            sum(answer["received"] for answer in answers),
            sum(answer["carried"] for answer in answers),
            sum(answer["sent"] for answer in answers),
            sum(answer["cpu_s"] for answer in answers),
        )

    def quiet(self) -> Counters:
        """Wait until no response has come for a while."""
        end = time.monotonic() + QUIET_TIMEOUT_S
        last = self.counters()
        while True:
            time.sleep(QUIET_S)
            now = self.counters()
            if now.responses == last.responses and now.carried == last.carried:
                return now
            if time.monotonic() > end:
                raise BenchError(f"responses have come for {QUIET_TIMEOUT_S:g} s without an end")
            last = now

    def close(self) -> None:
        """Hang up, and end the simulators."""
        for connection, lines in zip(self._sockets, self._lines, strict=True):
            lines.close()
            connection.close()
        self._processes.stop(self._started)
