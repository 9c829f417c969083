"""The client's side of a case: its script step by step, then what came of it.

Steps: `call: {…}` (open, send all, wait for the end), `start: {…}` (the same without waiting), `calls: {times: n, at_once: 100, of: {…}}`,
`each: {times: n, of: {…}}` (one after the other, with its number in the place of `$n`; the line says who answered each, by the first letter),
`message: {stream: n, grpc: text, end: true}`, `cancel: n`, `ended: n`, `headers: n` (wait for them), `arrived: {backend: n}`, `settled: {backend: n}`, `lost: {backend: n}` (so many of its connections are closed), `release: backend`, `send: [frames]`,
`until: {backend: NAME, requests: n, of: {…}}` (call until it has seen so many), `health: {cluster: NAME, backend: FLAGS}` (wait until /clusters of the port `admin` says so, and write down what it says),
`ping`, `closed`, `goaway` (wait for them), `mute` (answer no PING from now on), `connect` (go on with a new connection), `tunnel: HOST:PORT` (the same through CONNECT), `text: …` (bytes on a new connection that are no HTTP/2).

A call is `{path, authority, method, scheme, fields: […], headers: […] (all of them), grpc: text, data: …, end: false, trailers: […], plain: true}`.
"""

import asyncio
import re
import socket
import zlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.request import urlopen

from tests.differential import script, wire
from tests.differential.backend import Backend
from tests.differential.cases import Case
from tests.differential.wire import Fields, Seen, Wire

PING: Final = b"settled?"
PING_TIMEOUT_S: Final = 2.0
CLOSE_TIMEOUT_S: Final = 2.5
UPSTREAM_TIMEOUT_S: Final = 1.0
BATCH: Final = 100
BATCH_PATIENCE_S: Final = 20.0
"""Every call of a batch is answered: what takes long is the machine."""

REQUEST_NOISE: Final = {
    "x-forwarded-proto": "how the client came; services behind this proxy are spoken to in one way",
    "x-request-id": "random; made only by a proxy that traces",
    "x-envoy-expected-rq-timeout-ms": "the time-out in force; a gRPC service reads `grpc-timeout`",
}
"""Request headers that only one engine adds, with the reason; listed in docs/differences.md."""
COPY_NOISE: Final = {
    "x-envoy-internal": "the mark of a call of Envoy's own, as a copy is one",
    "x-forwarded-for": "the address of the machine that makes such a call",
}
"""The same for copies of calls."""
RESPONSE_NOISE: Final = {
    "server": "name of the proxy",
    "date": "time of the answer",
    "x-envoy-upstream-service-time": "how long the upstream took; ours is in the metrics",
    "grpc-retry-pushback-ms": "when a call that a rate limit refused with RESOURCE_EXHAUSTED may be tried again (gRFC A6)",
}
"""The same for response headers."""
OWN_TEXT: Final = ("grpc-message", "content-length")
"""What an answer of the engine's own is not compared in, nor in the text for people that goes with an HTTP status: ours always says why."""


@dataclass
class Outcome:
    """What came of a case on one engine."""

    lines: list[str] = field(default_factory=list)
    """One a stream, and one a connection that was not kept."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Everything that is compared."""
    attempts: dict[str, int] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)
    has_silent_errors: bool = False
    """The engine itself refused a gRPC call without saying why."""
    spread: Counter[str] = field(default_factory=Counter)


def _noise(seen: Seen) -> set[str]:
    is_copy = any(name == "x-envoy-internal" for name, _ in seen.headers or [])
    return {*REQUEST_NOISE, *(COPY_NOISE if is_copy else ())}


def _request(call: dict[str, Any]) -> Fields:
    if "headers" in call:
        return script.fields(call["headers"])
    is_plain = call.get("plain", False)
    found = [
        (":method", call.get("method", "GET" if is_plain else "POST")),
        (":scheme", call.get("scheme", "http")),
        (":path", call.get("path", "/shop.Orders/Get")),
        (":authority", call.get("authority", "shop")),
    ]
    if not is_plain:
        found += [("content-type", "application/grpc"), ("te", "trailers")]
    return found + script.fields(call.get("fields", []))


def _numbered(tree: Any, number: int) -> Any:
    """A call with a number in the place of `$n`."""
    if isinstance(tree, dict):
        return {key: _numbered(value, number) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_numbered(value, number) for value in tree]
    return tree.replace("$n", str(number)) if isinstance(tree, str) else tree


class Client:
    """Runs the script of a case against one engine."""

    def __init__(self, case: Case, port: int, backends: dict[str, Backend], admin_port: int = 0) -> None:
        self._admin_port = admin_port
        self._case = case
        self._port = port
        self._backends = backends
        self._conns: list[Wire] = []
        self._texts: list[str] = []
        self._spread: Counter[str] = Counter()

    async def run(self) -> Outcome:
        """The whole script, then wait until all is settled."""
        if self._case.is_warm:
            await self._warm_up()
        for name, backend in self._backends.items():
            backend.begin(list(dict(self._case.backend).get(name, ())))
        try:
            for step in self._case.script:
                kind, value = next(iter(step.items())) if isinstance(step, dict) else (step, None)
                await self._step(kind, value)
            await self._settle()
            return self._outcome()
        finally:
            for conn in self._conns:
                conn.close()
            for backend in self._backends.values():
                backend.finish()

    async def _warm_up(self) -> None:
        for backend in self._backends.values():
            backend.begin([])
        conn = Wire(is_server=False)
        await asyncio.get_running_loop().create_connection(lambda: conn, "127.0.0.1", self._port)
        conn.hello()
        seen = self._start(conn, {})
        await self._wait(conn, lambda: seen.is_over)
        conn.close()

    # -- steps --------------------------------------------------------------------------------------

    async def _conn(self) -> Wire:
        if not self._conns:
            await self._connect()
        return self._conns[-1]

    async def _connect(self, sock: socket.socket | None = None) -> Wire:
        conn = Wire(is_server=False, announced=dict(self._case.announce))
        loop = asyncio.get_running_loop()
        if sock is not None:
            await loop.create_connection(lambda: conn, sock=sock)
        else:
            await loop.create_connection(lambda: conn, "127.0.0.1", self._port)
        self._conns.append(conn)
        if self._case.hello:
            conn.hello()
        return conn

    async def _step(self, kind: str, value: Any) -> None:
        if kind == "text":
            await self._text(value)
            return
        if kind == "tunnel":
            await self._tunnel(value)
            return
        conn = await (self._connect() if kind == "connect" else self._conn())
        match kind:
            case "connect":
                pass
            case "call":
                seen = self._start(conn, value)
                await self._wait(conn, lambda: seen.is_over)
            case "start":
                self._start(conn, value)
            case "calls":
                await self._many(conn, value)
            case "each":
                await self._each(conn, value)
            case "message":
                seen = conn.streams[value["stream"]]
                payload = script.message(value["grpc"]) if "grpc" in value else b""
                conn.data(seen, payload, ended=value.get("end", False))
            case "cancel":
                conn.reset(conn.streams[value], "CANCEL")
            case "ended":
                await self._wait(conn, lambda: conn.streams[value].is_over)
            case "headers":
                await self._wait(conn, lambda: conn.streams[value].headers is not None)
            case "arrived":
                await self._arrived(value)
            case "lost":
                await self._lost(value)
            case "settled":
                await self._settled(value)
            case "until":
                await self._until(conn, value)
            case "health":
                await self._health(value)
            case "release":
                self._backends[value].release()
            case "send":
                for stream_id, ended in script.opens(value):
                    seen = conn.expect(stream_id)
                    seen.have_ended = seen.have_ended or ended
                conn.send(b"".join(script.frame(item) for item in value))
            case "closed":
                await self._wait(conn, lambda: conn.is_closed)
            case "goaway":
                await self._wait(conn, lambda: conn.goaway is not None)
            case "mute":
                conn.answers_pings = False
            case "ping":
                await self._ping(conn)
            case _:
                raise ValueError(f"{self._case.id}: no step {kind!r}")

    async def _wait(self, conn: Wire, condition: Any, patience: float = 0.0) -> None:
        await conn.until(lambda: condition() or conn.is_closed, patience or self._case.patience)

    def _start(self, conn: Wire, call: dict[str, Any]) -> Seen:
        has_body = "grpc" in call or "data" in call or not call.get("plain", False)
        ends = call.get("end", True)
        trailers = call.get("trailers")
        seen = conn.open(_request(call), ended=ends and not has_body and trailers is None)
        if has_body:
            payload = script.body(call["data"]) if "data" in call else script.message(call.get("grpc", "hello"))
            conn.data(seen, payload, ended=ends and trailers is None)
        if trailers is not None:
            conn.headers(seen, script.fields(trailers), ended=True)
        return seen

    async def _many(self, conn: Wire, value: dict[str, Any]) -> None:
        left = int(value["times"])
        while left:
            size = min(int(value.get("at_once", BATCH)), left)
            batch = [self._start(conn, value["of"]) for _ in range(size)]
            await self._wait(conn, lambda batch=batch: all(seen.is_over for seen in batch), BATCH_PATIENCE_S)
            for seen in batch:
                origin = seen.header("x-from") or f"grpc {seen.header('grpc-status')}"
                self._spread[origin if seen.is_over else "unanswered"] += 1
                del conn.streams[seen.id]
            left -= size

    async def _each(self, conn: Wire, value: dict[str, Any]) -> None:
        line = ""
        for number in range(int(value["times"])):
            seen = self._start(conn, _numbered(value["of"], number))
            await self._wait(conn, lambda seen=seen: seen.is_over)
            origin = seen.header("x-from")
            line += origin[0] if origin else "-"
            del conn.streams[seen.id]
        self._texts.append(f"each: {line}")

    async def _arrived(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            backend = self._backends[name]
            end = asyncio.get_running_loop().time() + self._case.patience
            while len(backend.requests) < count:
                assert asyncio.get_running_loop().time() < end, (
                    f"{self._case.id}: {name} saw {len(backend.requests)} requests"
                )
                await asyncio.sleep(0.005)

    async def _lost(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            backend = self._backends[name]
            end = asyncio.get_running_loop().time() + self._case.patience
            while sum(conn.is_closed for conn in backend.connections) < count:
                assert asyncio.get_running_loop().time() < end, f"{self._case.id}: {name} keeps its connections"
                await asyncio.sleep(0.005)

    async def _settled(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            backend = self._backends[name]
            async with asyncio.timeout(self._case.patience):
                while backend.settled < count:
                    await asyncio.sleep(0.005)

    async def _ping(self, conn: Wire) -> None:
        conn.pongs.discard(PING)
        conn.send(wire.frame("PING", payload=PING))
        await conn.until(lambda: PING in conn.pongs or conn.is_closed, PING_TIMEOUT_S)

    async def _until(self, conn: Wire, value: dict[str, Any]) -> None:
        """Call until a backend has seen so many requests; the calls are not looked at."""
        backend = self._backends[value["backend"]]
        end = asyncio.get_running_loop().time() + self._case.patience
        while len(backend.requests) < value["requests"] and asyncio.get_running_loop().time() < end:
            seen = self._start(conn, value["of"])
            await self._wait(conn, lambda seen=seen: seen.is_over)
            del conn.streams[seen.id]
        self._texts.append(f"{backend.name} saw {len(backend.requests)} requests")

    async def _health(self, wanted: dict[str, str]) -> None:
        """Wait until the admin endpoint says this of a cluster's endpoints, and write down what it says then."""
        cluster = wanted["cluster"]
        end = asyncio.get_running_loop().time() + self._case.patience
        while True:
            found = await self._flags(cluster)
            if all(found.get(name) == flags for name, flags in wanted.items() if name != "cluster"):
                break
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(0.02)
        self._texts.append(f"{cluster}: " + ", ".join(f"{name} {flags}" for name, flags in sorted(found.items())))

    async def _flags(self, cluster: str) -> dict[str, str]:
        """Health flags by backend, as /clusters has them."""
        text = await asyncio.to_thread(_fetch, f"http://127.0.0.1:{self._admin_port}/clusters")
        names = {backend.port: name for name, backend in self._backends.items()}
        found = re.findall(rf"^{re.escape(cluster)}::[^:]+:(\d+)::health_flags::(\S+)", text, re.MULTILINE)
        return {names.get(int(port), "dead"): flags.strip("/") for port, flags in found}

    async def _tunnel(self, target: str) -> None:
        loop = asyncio.get_running_loop()
        sock = await self._socket()
        await loop.sock_sendall(sock, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = await asyncio.wait_for(loop.sock_recv(sock, 1), self._case.patience)
            if not data:
                break
            head += data
        status = _http1_status(head)
        self._texts.append(f"tunnel: {status}")
        if status == "200":
            await self._connect(sock)
        else:
            sock.close()

    async def _text(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        sock = await self._socket()
        await loop.sock_sendall(sock, text.encode("latin-1"))
        data, ending = b"", "closed"
        try:
            async with asyncio.timeout(self._case.patience):
                while part := await loop.sock_recv(sock, 65_536):
                    data += part
        except TimeoutError:
            ending = "kept"
        except ConnectionError:
            pass
        finally:
            sock.close()
        self._texts.append(f"text: {_http1_status(data)}, {ending}")

    async def _socket(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
        return sock

    # -- what came of it ----------------------------------------------------------------------------

    async def _settle(self) -> None:
        for conn in self._conns:
            await self._settle_client(conn)
        has_open = any(not seen.is_over for conn in self._conns for seen in conn.streams.values())
        timeout_s = 0.1 if has_open else UPSTREAM_TIMEOUT_S
        for backend in self._backends.values():
            for request in backend.requests:
                await request.conn.until(partial(_is_done, request.seen), timeout_s)

    async def _settle_client(self, conn: Wire) -> None:
        await self._wait(conn, lambda: all(seen.is_over for seen in conn.streams.values() if seen.have_ended))
        await self._ping(conn)
        if conn.goaway is not None and conn.goaway[1]:
            await conn.until(lambda: conn.is_closed, CLOSE_TIMEOUT_S)

    def _outcome(self) -> Outcome:
        outcome = Outcome(lines=list(self._texts), spread=self._spread)
        streams = []
        for number, conn in enumerate(self._conns, 1):
            for seen in conn.streams.values():
                outcome.lines.append(f"{seen.id}: {_ending(seen)}")
                if seen.header("grpc-status") is not None and seen.header("x-from") is None:
                    outcome.has_silent_errors |= not seen.header("grpc-message")
                streams.append(_response(seen, set(self._backends)))
            ending = _connection(conn)
            if ending:
                outcome.lines.append(f"connection{f' {number}' if len(self._conns) > 1 else ''}: {ending}")
        outcome.connections = {name: backend.accepted for name, backend in self._backends.items()}
        outcome.attempts = {name: len(backend.requests) for name, backend in self._backends.items()}
        outcome.detail = {
            "lines": outcome.lines,
            "streams": streams,
            "upstream": {
                name: sorted((_upstream(request.seen) for request in backend.requests), key=repr)
                for name, backend in self._backends.items()
                if backend.requests
            },
        }
        return outcome


def _fetch(address: str) -> str:
    with urlopen(address, timeout=CLOSE_TIMEOUT_S) as answer:
        return str(answer.read().decode())


def _short(data: bytes) -> object:
    return data if len(data) <= 200 else (data[:20], len(data), zlib.crc32(data))


def _is_done(seen: Seen) -> bool:
    return seen.is_done


def _http1_status(data: bytes) -> str:
    found = re.match(rb"HTTP/1\.[01] (\d{3})", data)
    return found[1].decode() if found else "no HTTP/1 answer" if data else "nothing"


def _ending(seen: Seen) -> str:
    """A stream in a few words."""
    words = [dict(fields)[":status"] for fields in seen.informational]
    if seen.headers is not None:
        words.append(dict(seen.headers).get(":status", "no status"))
        if seen.header("grpc-status") is not None:
            words.append(f"grpc {seen.header('grpc-status')}")
        if seen.header("x-from") is not None:
            words.append(f"from {seen.header('x-from')}")
    if seen.reset is not None:
        # Behind a whole answer NO_ERROR asks for the rest of a request not to be sent; whether any was under way is chance.
        if seen.reset or not seen.is_ended or not seen.have_ended:
            words.append(f"RST {wire.code_name(seen.reset)}")
    elif seen.have_reset:
        words.append("cancelled")
    elif seen.is_cut:
        words.append("cut")
    elif not seen.is_over:
        words.append("open")
    return " ".join(words) if words else "ended"


def _connection(conn: Wire) -> str:
    words = []
    if conn.goaway is not None:
        words.append(f"GOAWAY {wire.code_name(conn.goaway[1])}")
    if conn.is_closed:
        words.append("closed")
    elif PING not in conn.pongs:
        words.append("silent")
    return ", ".join(words)


def _response(seen: Seen, backends: set[str]) -> dict[str, Any]:
    """A stream in full, for comparison, without the texts that an engine wrote itself."""
    is_own = seen.header("x-from") not in backends
    drop = {*RESPONSE_NOISE, *(OWN_TEXT if is_own else ())}

    def kept(fields: Fields | None) -> Fields | None:
        if fields is None:
            return None
        return [(name, value) for name, value in fields if name not in drop]

    body = bytes(seen.data)
    if is_own and seen.header("grpc-status") is None:
        body, drop = b"", {*drop, "content-type"}
    return {
        "informational": [kept(fields) for fields in seen.informational],
        "headers": kept(seen.headers),
        "data": _short(body),
        "trailers": kept(seen.trailers),
        "ending": _ending(seen),
    }


def _upstream(seen: Seen) -> dict[str, Any]:
    """A request as the backend saw it."""
    return {
        "pseudo": sorted(field for field in seen.headers or [] if field[0].startswith(":")),
        "headers": [field for field in seen.headers or [] if field[0][:1] != ":" and field[0] not in _noise(seen)],
        "data": _short(bytes(seen.data)),
        "trailers": seen.trailers,
        "ended": seen.is_ended,
        # Once both sides have ended a stream, whether a reset still arrives is a race.
        "reset": seen.reset is not None and not (seen.is_ended and seen.have_ended),
        "cut": seen.is_cut,
    }
