"""A sidecar process to attack, with backends of our own, a well-behaved client beside the attacker, and what the process holds."""

import asyncio
import contextlib
import re
import statistics
import struct
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET, socket
from typing import Any, Final

from tests.differential import engines, script
from tests.differential.backend import Backend
from tests.differential.wire import CODES, PREFACE, Wire, frame, plain_block, settings
from tests.ports import free_ports
from tests.sidecar import bootstraps

PATIENCE_S: Final = 15.0
MIB: Final = 1024 * 1024
HELLO: Final = PREFACE + settings({}) + frame("SETTINGS", flags=1)
REQUEST: Final = plain_block(script.fields(script.GRPC))
INSPECTOR: Final = {
    "name": "envoy.filters.listener.http_inspector",
    "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
    },
}
RUNTIME: Final = {
    "remora.max_unread_bytes": 256 * 1024,
    "remora.max_buffered_bytes": 16 * MIB,
    "envoy.resource_limits.listener.few.connection_limit": 5,
}


@dataclass
class Held:
    """What the process holds."""

    rss: int
    files: int
    connections: float
    calls: float


@dataclass
class Ending:
    """What an attacker got."""

    goaway: str = ""
    resets: list[str] = field(default_factory=list)
    headers: int = 0
    is_closed: bool = False
    data: bytes = b""


class Target:
    """The process and everything around it. `few` takes five connections, `quick` is patient for half a second, `watched` pings,
    `tunnel` takes CONNECT; `main` is the ordinary one."""

    def __init__(self, folder: Path) -> None:
        names = ("main", "few", "quick", "watched", "tunnel", "admin", "a")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports = self.ports
        quiet = {"stream_idle_timeout": "1s"}
        main = bootstraps.listener("main", ports["main"], "a", **quiet)
        routes = main["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
        routes.insert(0, {"match": {"path": "/nowhere"}, "route": {"cluster": "empty"}})
        quick = bootstraps.listener("quick", ports["quick"], "a")
        quick |= {"listener_filters": [INSPECTOR], "listener_filters_timeout": "0.5s"}
        watching = {"http2_protocol_options": {"connection_keepalive": {"interval": "0.3s", "timeout": "0.3s"}}}
        tunnel = bootstraps.listener("tunnel", ports["tunnel"], "a", upgrade_configs=[{"upgrade_type": "CONNECT"}])
        self.bootstrap = bootstraps.static(
            [
                main,
                bootstraps.listener("few", ports["few"], "a"),
                quick,
                bootstraps.listener("watched", ports["watched"], "a", **watching),
                tunnel,
            ],
            [
                bootstraps.cluster("a", ports["a"], circuit_breakers={"thresholds": [{"max_requests": 100_000}]}),
                bootstraps.cluster("empty"),
            ],
            admin={"address": bootstraps.address(ports["admin"])},
            layered_runtime={"layers": [{"name": "static", "static_layer": RUNTIME}]},
        )
        self.folder = folder
        self.backend = Backend("a", {})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def open(self) -> None:
        """Start the backend, in a thread of its own, and the sidecar."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.backend.open(self.ports["a"]), self._loop).result(PATIENCE_S)
        self.engine = engines.launch("remora", self.bootstrap, self.folder)
        listeners = [self.ports[name] for name in ("main", "few", "quick", "watched", "tunnel", "admin")]
        engines.wait_ready(self.engine, listeners)

    def close(self) -> None:
        """Stop both."""
        self.engine.stop()
        self._loop.call_soon_threadsafe(self.backend.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)

    def answer(self, answers: list[Any]) -> None:
        """What the backend does from now on, see `tests.differential.backend`."""

        def begin() -> None:
            self.backend.begin(answers)

        self._loop.call_soon_threadsafe(begin)

    # -- what it holds ------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        return self.engine.process.pid

    def metrics(self) -> str:
        """The metrics page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['admin']}/metrics", timeout=PATIENCE_S) as page:
            text: str = page.read().decode()
            return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the samples that have these labels."""
        total = 0.0
        for line in self.metrics().splitlines():
            found = re.match(rf"{name}(\{{(.*)\}})? (\S+)$", line)
            if found and all(f'{key}="{value}"' in (found[2] or "") for key, value in labels.items()):
                total += float(found[3])
        return total

    def exceeded(self, limit: str) -> float:
        """How often a limit was run into."""
        return self.metric("remora_limit_exceeded_total", limit=limit)

    def held(self) -> Held:
        """Memory, open files, connections, calls."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        rss = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
        connections, calls = self.metric("remora_connections"), self.metric("remora_calls_running")
        return Held(rss, len(list(Path(f"/proc/{self.pid}/fd").iterdir())), connections, calls)

    # -- attackers ----------------------------------------------------------------------------------

    def dial(self, listener: str = "main", receive_buffer: int = 0) -> socket:
        """A bare socket."""
        sock = socket()
        if receive_buffer:
            sock.setsockopt(SOL_SOCKET, SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", self.ports[listener]))
        return sock

    def attack(
        self,
        payload: bytes,
        listener: str = "main",
        hello: bytes = HELLO,
        *,
        until: Callable[[Ending], bool] = lambda ending: False,
    ) -> Ending:
        """Send bytes, as fast as they are taken, and read what comes until the connection is closed, or `until` is content."""
        with self.dial(listener) as sock:
            ending = Ending()
            reader = threading.Thread(target=_read, args=(sock, ending, until))
            reader.start()
            with contextlib.suppress(OSError):  # it may be cut while it writes
                sock.sendall(hello + payload)
            reader.join(PATIENCE_S)
            return ending


def _read(sock: socket, ending: Ending, until: Callable[[Ending], bool]) -> None:
    data = b""
    try:
        while not until(ending):
            part = sock.recv(65_536)
            if not part:
                ending.is_closed = True
                return
            ending.data = (ending.data + part)[:65_536]
            data = _frames(data + part, ending)
    except TimeoutError:
        pass
    except OSError:
        ending.is_closed = True


def _frames(data: bytes, ending: Ending) -> bytes:
    """Write down the frames that are whole; the rest."""
    at = 0
    while at + 9 <= len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        if at + 9 + size > len(data):
            break
        kind, payload = data[at + 3], data[at + 9 : at + 9 + size]
        if kind == 7:
            ending.goaway = CODES[struct.unpack_from(">II", payload)[1]]
        elif kind == 3:
            ending.resets.append(CODES[int.from_bytes(payload, "big")])
        elif kind == 1:
            ending.headers += 1
        at += 9 + size
    return data[at:]


class Neighbour:
    """A well-behaved client on a connection of its own: calls one after the other, and how long each took."""

    def __init__(self, target: Target, listener: str = "main") -> None:
        self._port = target.ports[listener]
        self.failures: list[str] = []
        self._phases: dict[str, list[float]] = {}
        self._phase = "calm"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)

    async def _run(self) -> None:
        wire = Wire(is_server=False)
        await asyncio.get_running_loop().create_connection(lambda: wire, "127.0.0.1", self._port)
        wire.hello()
        while not self._stop.is_set():
            phase, start = self._phase, time.perf_counter()
            seen = wire.open(script.fields(script.GRPC), ended=False)
            wire.data(seen, script.message("hello"), ended=True)
            await wire.until(lambda seen=seen: seen.is_over, PATIENCE_S)  # type: ignore[misc]
            self._phases.setdefault(phase, []).append(time.perf_counter() - start)
            if seen.header("grpc-status") != "0":
                self.failures.append(f"{phase}: {seen}")
                return
            wire.streams.clear()
            await asyncio.sleep(0.002)
        wire.close()

    def during(self, phase: str, calls: int = 20) -> None:
        """Count what follows as this phase, once so many calls of it are done."""
        self._phase = phase
        end = time.monotonic() + PATIENCE_S
        while len(self._phases.get(phase, ())) < calls and not self.failures and time.monotonic() < end:
            time.sleep(0.002)

    def enter(self, phase: str) -> None:
        """Count what follows as this phase."""
        self._phase = phase

    def median(self, phase: str) -> float:
        """Seconds."""
        return statistics.median(self._phases[phase])

    def count(self, phase: str) -> int:
        """Calls of a phase."""
        return len(self._phases.get(phase, ()))
