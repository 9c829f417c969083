"""HTTP/1.1 and opaque TCP through both engines: what the endpoint sees, what the client gets, with the same bootstrap."""

import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.differential import engines
from tests.differential.engines import ENGINES, Engine
from tests.ports import free_ports
from tests.sidecar import bootstraps

PATIENCE_S: Final = 5.0
NOISE: Final = frozenset(
    (
        "x-forwarded-proto",
        "x-request-id",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-upstream-service-time",
        "server",
        "date",
        "transfer-encoding",
    )
)
TCP: Final = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
INSPECTORS: Final = [
    {
        "name": f"envoy.filters.listener.{name}",
        "typed_config": {
            "@type": f"type.googleapis.com/envoy.extensions.filters.listener.{name}.v3.{kind}",
        },
    }
    for name, kind in (("tls_inspector", "TlsInspector"), ("http_inspector", "HttpInspector"))
]


@dataclass
class Message:
    """One request or response as it was on the wire, its body put together."""

    line: str
    fields: list[tuple[str, str]]
    body: bytes
    is_whole: bool = True

    @property
    def shown(self) -> tuple[str, list[tuple[str, str]], bytes]:
        """What is compared: not the names that only one engine adds, nor the form of the body."""
        kept = sorted((name, value) for name, value in self.fields if name not in NOISE)
        return self.line, kept, self.body


class Reader:
    """Reads HTTP/1.1 messages from a socket; knows nothing of h11."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.data = b""
        self.has_ended = False

    def more(self) -> bool:
        try:
            data = self._sock.recv(65_536)
        except (ConnectionError, TimeoutError):
            data = b""
        self.data += data
        self.has_ended = self.has_ended or not data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        while mark not in self.data:
            if not self.more():
                rest, self.data = self.data, b""
                return rest
        part, _, self.data = self.data.partition(mark)
        return part

    def exactly(self, size: int) -> bytes:
        while len(self.data) < size and self.more():
            pass
        part, self.data = self.data[:size], self.data[size:]
        return part

    def message(self, *, has_body: bool = True) -> Message | None:
        """The next one; None at the end."""
        head = self.until(b"\r\n\r\n").decode("latin-1")
        if not head:
            return None
        line, *rest = head.split("\r\n")
        fields = [(name.lower(), value.strip()) for name, _, value in (each.partition(":") for each in rest)]
        found = dict(fields)
        body, is_whole = b"", True
        if found.get("transfer-encoding") == "chunked":
            while size := int(self.until(b"\r\n") or b"0", 16):
                body += self.exactly(size)
                self.until(b"\r\n")
            self.until(b"\r\n")
        elif "content-length" in found and has_body:
            size = int(found["content-length"])
            body = self.exactly(size)
            is_whole = len(body) == size
        elif line.startswith("HTTP/1") and has_body and line.split(" ")[1] not in ("100", "101", "204"):
            while self.more():
                pass
            body, self.data = self.data, b""
        return Message(line, fields, body, is_whole)


@dataclass
class Endpoint:
    """An HTTP/1.1 server in threads; the path says how it answers."""

    port: int
    requests: list[Message] = field(default_factory=list)
    connections: int = 0
    release: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            reader = Reader(sock)
            while (request := reader.message()) is not None:
                self.requests.append(request)
                if not self._answer(sock, reader, request):
                    return

    def _answer(self, sock: socket.socket, reader: Reader, request: Message) -> bool:
        path = request.line.split(" ")[1]
        if path == "/close":
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
            return False
        if path == "/chunked":
            sock.sendall(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: b\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
            )
        elif path == "/none":
            sock.sendall(b"HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n")
        elif path == "/early":
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        elif path == "/broken":
            sock.sendall(b"HTTP/1.1 two hundred\r\n\r\n")
            return False
        elif path == "/hang":
            self.release.wait(PATIENCE_S)
            return False
        elif path.startswith("/switch"):
            sock.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-a: b\r\n\r\nhi"
            )
            while data := reader.data or sock.recv(65_536):
                reader.data = b""
                sock.sendall(data.upper())
            return False
        elif request.line.startswith("HEAD"):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n")
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(request.body), request.body))
        return True

    def close(self) -> None:
        self.release.set()
        self._server.close()


class Echo:
    """An endpoint that may speak first, and sends back what comes."""

    def __init__(self, port: int, greeting: bytes) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self._greeting = greeting
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            if self._greeting:
                sock.sendall(self._greeting)
            while data := sock.recv(65_536):
                sock.sendall(data)

    def close(self) -> None:
        self._server.close()


def _http(cluster: str, **options: Any) -> dict[str, Any]:
    return bootstraps.listener("any", 0, cluster, **options)["filter_chains"][0]["filters"][0]  # type: ignore[no-any-return]


def _tcp(cluster: str, **options: Any) -> dict[str, Any]:
    return {"name": "tcp", "typed_config": {"@type": TCP, "stat_prefix": "tcp", "cluster": cluster, **options}}


def _listener(name: str, port: int, chains: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"name": name, "address": bootstraps.address(port), "filter_chains": chains, **fields}


def _http1_cluster(name: str, port: int) -> dict[str, Any]:
    found = bootstraps.cluster(name, port)
    del found["typed_extension_protocol_options"]
    return found


class Side:
    """One engine with endpoints of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        names = ("main", "mixed", "first", "tcp", "http1", "echo", "greets", "dead")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports = self.ports
        self.endpoint = Endpoint(ports["http1"])
        self.echo = Echo(ports["echo"], b"")
        self.greets = Echo(ports["greets"], b"220 welcome\r\n")
        http = _http("http1", upgrade_configs=[{"upgrade_type": "websocket"}])
        routes = http["typed_config"]["route_config"]["virtual_hosts"][0]["routes"]
        routes.insert(0, {"match": {"path": "/hang"}, "route": {"cluster": "http1", "timeout": "0.2s"}})
        routes.insert(0, {"match": {"path": "/dead"}, "route": {"cluster": "dead"}})
        self.bootstrap = bootstraps.static(
            [
                _listener("main", ports["main"], [{"filters": [http]}]),
                _listener(
                    "mixed",
                    ports["mixed"],
                    [
                        {
                            "filter_chain_match": {"application_protocols": ["http/1.1", "h2c"]},
                            "filters": [http],
                        },
                        {"filters": [_tcp("echo")]},
                    ],
                    listener_filters=INSPECTORS,
                ),
                _listener(
                    "first",
                    ports["first"],
                    [
                        {"filter_chain_match": {"application_protocols": ["http/1.1", "h2c"]}, "filters": [http]},
                        {"filters": [_tcp("greets")]},
                    ],
                    listener_filters=INSPECTORS,
                    listener_filters_timeout="0.2s",
                    continue_on_listener_filters_timeout=True,
                ),
                _listener("tcp", ports["tcp"], [{"filters": [_tcp("echo", idle_timeout="0.5s")]}]),
            ],
            [
                _http1_cluster("http1", ports["http1"]),
                bootstraps.cluster("echo", ports["echo"]),
                bootstraps.cluster("greets", ports["greets"]),
                bootstraps.cluster("dead", ports["dead"]),
            ],
        )
        folder.mkdir()
        self.engine: Engine = engines.launch(name, self.bootstrap, folder)

    def close(self) -> None:
        self.engine.stop()
        self.endpoint.close()
        self.echo.close()
        self.greets.close()


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[str, Side]]:
    with tempfile.TemporaryDirectory(prefix="http1-") as folder:
        sides = {name: Side(name, Path(folder) / name) for name in ENGINES}
        for side in sides.values():
            engines.wait_ready(side.engine, [side.ports[name] for name in ("main", "mixed", "first", "tcp")])
        yield sides
        for side in sides.values():
            side.close()


def dial(side: Side, listener: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", side.ports[listener]), timeout=PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def outcome(side: Side, text: bytes, listener: str = "main", answers: int = 1, *, has_body: bool = True) -> Any:
    """What the client gets, whether the connection is kept, and what the endpoint saw."""
    side.endpoint.requests.clear()
    with dial(side, listener) as sock:
        sock.sendall(text)
        reader = Reader(sock)
        got = [reader.message(has_body=has_body) for _ in range(answers)]
        is_kept = False
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET /probe HTTP/1.1\r\nhost: shop\r\n\r\n")
            is_kept = reader.message() is not None
    return (
        [each and each.shown for each in got],
        is_kept,
        [each.shown for each in side.endpoint.requests if "/probe" not in each.line],
    )


def on_both(sides: dict[str, Side], text: bytes, **options: Any) -> tuple[Any, Any]:
    """Envoy's outcome and ours, at the same time."""
    with ThreadPoolExecutor() as pool:
        envoy, ours = pool.map(lambda name: outcome(sides[name], text, **options), ENGINES)
    return envoy, ours


GET: Final = b"GET /a HTTP/1.1\r\nhost: shop\r\n\r\n"


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        pytest.param(GET, 1, id="a request without a body"),
        pytest.param(GET + GET, 2, id="two requests at once"),
        pytest.param(
            b"POST /a?b=c HTTP/1.1\r\nHost: shop\r\nX-User: Ann\r\nContent-Length: 5\r\n\r\nhello", 1, id="a length"
        ),
        pytest.param(
            b"POST /a HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n",
            1,
            id="chunks",
        ),
        pytest.param(b"GET /chunked HTTP/1.1\r\nhost: shop\r\n\r\n", 1, id="an answer in chunks"),
        pytest.param(b"GET /close HTTP/1.1\r\nhost: shop\r\n\r\n", 1, id="an answer that ends with its connection"),
        pytest.param(b"GET /none HTTP/1.1\r\nhost: shop\r\n\r\n" + GET, 2, id="an answer without a body, then another"),
        pytest.param(b"GET /a HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n", 1, id="a client that closes"),
        pytest.param(
            b"GET /a HTTP/1.1\r\nhost: shop\r\nconnection: x-hop\r\nx-hop: 1\r\nte: gzip\r\nkeep-alive: 5\r\n\r\n",
            1,
            id="headers of one hop",
        ),
        pytest.param(b"GET http://other/a HTTP/1.1\r\nhost: shop\r\n\r\n", 1, id="a whole address"),
    ],
)
def test_requests_and_answers_pass_as_through_envoy(sides: dict[str, Side], text: bytes, answers: int) -> None:
    envoy, ours = on_both(sides, text, answers=answers)
    assert ours == envoy
    assert all(each is not None and each[0].startswith("HTTP/1.1 2") for each in ours[0])


def test_head_has_a_length_and_no_body(sides: dict[str, Side]) -> None:
    text = b"HEAD /a HTTP/1.1\r\nhost: shop\r\n\r\n"
    envoy, ours = on_both(sides, text, has_body=False)
    assert ours == envoy
    assert ("content-length", "7") in ours[0][0][1]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        pytest.param(b"GET /a HTTP/1.1\r\n\r\n", "400", id="no host"),
        pytest.param(b"hello\r\n\r\n", "400", id="no HTTP"),
        pytest.param(b"GET /a HTTP/1.0\r\nhost: shop\r\n\r\n", "426", id="HTTP/1.0"),
        pytest.param(b"GET /a b HTTP/1.1\r\nhost: shop\r\n\r\n", "400", id="a target with a space"),
        pytest.param(
            b"POST /a HTTP/1.1\r\nhost: shop\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
            id="a length and chunks",
        ),
        pytest.param(
            b"POST /a HTTP/1.1\r\nhost: shop\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
            "400",
            id="two lengths",
        ),
        pytest.param(
            b"GET /a HTTP/1.1\r\nhost: shop\r\nx-a: " + b"v" * 70_000 + b"\r\n\r\n", "431", id="a head that is too long"
        ),
        pytest.param(
            b"GET /a HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n", "403", id="an upgrade"
        ),
        pytest.param(b"GET /dead HTTP/1.1\r\nhost: shop\r\n\r\n", "503", id="an endpoint that is not there"),
        pytest.param(b"GET /broken HTTP/1.1\r\nhost: shop\r\n\r\n", "502", id="an answer that is no HTTP"),
    ],
)
def test_what_is_wrong_is_answered_with_the_same_status(sides: dict[str, Side], text: bytes, status: str) -> None:
    envoy, ours = on_both(sides, text)
    assert ours[0][0][0].split(" ")[1] == envoy[0][0][0].split(" ")[1] == status
    assert ours[1] == envoy[1]


def test_a_client_that_waits_for_100_gets_it(sides: dict[str, Side]) -> None:
    for side in sides.values():
        with dial(side, "main") as sock:
            sock.sendall(b"POST /a HTTP/1.1\r\nhost: shop\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
            reader = Reader(sock)
            first = reader.message()
            assert first is not None
            assert first.line.startswith("HTTP/1.1 100")
            sock.sendall(b"hello")
            second = reader.message()
            assert second is not None
            assert (second.line, second.body) == ("HTTP/1.1 200 OK", b"hello")
        assert all(name != "expect" for name, _ in side.endpoint.requests[-1].fields)


def test_an_upgrade_leads_to_bytes_in_both_directions(sides: dict[str, Side]) -> None:
    got = {}
    for name, side in sides.items():
        with dial(side, "main") as sock:
            sock.sendall(b"GET /switch HTTP/1.1\r\nhost: shop\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
            reader = Reader(sock)
            answer = reader.message()
            assert answer is not None
            assert reader.exactly(2) == b"hi"
            sock.sendall(b"one")
            assert reader.exactly(3) == b"ONE"
            sock.sendall(b"x" * 300_000)
            assert reader.exactly(300_000) == b"X" * 300_000
            got[name] = answer.shown
    assert got["remora"] == got["envoy"]


def test_a_keep_alive_connection_to_the_endpoint_is_used_again(sides: dict[str, Side]) -> None:
    side = sides["remora"]
    outcome(side, GET)
    before = side.endpoint.connections
    for _ in range(5):
        outcome(side, GET)
    assert side.endpoint.connections == before


def test_a_time_out_of_the_route_holds_for_http1_too(sides: dict[str, Side]) -> None:
    for side in sides.values():
        answers, _, _ = outcome(side, b"GET /hang HTTP/1.1\r\nhost: shop\r\n\r\n")
        assert answers[0][0].startswith("HTTP/1.1 504")


def test_one_port_takes_http_and_whatever_else_comes(sides: dict[str, Side]) -> None:
    for side in sides.values():
        answers, _, seen = outcome(side, GET, listener="mixed")
        assert answers[0][0] == "HTTP/1.1 200 OK", (side.engine.name, answers)
        assert seen
        with dial(side, "mixed") as sock:
            text = b"\x00\x01 this is no HTTP\r\n"
            sock.sendall(text)
            assert Reader(sock).exactly(len(text)) == text


def test_a_server_that_speaks_first_is_reached_after_the_detection_time(sides: dict[str, Side]) -> None:
    for side in sides.values():
        with dial(side, "first") as sock:
            assert Reader(sock).exactly(13) == b"220 welcome\r\n"
            sock.sendall(b"HELO")
            assert sock.recv(100) == b"HELO"
        answers, _, _ = outcome(side, GET, listener="first")
        assert answers[0][0] == "HTTP/1.1 200 OK", (side.engine.name, answers)


def _send_all(sock: socket.socket, payload: bytes) -> None:
    sock.sendall(payload)
    sock.shutdown(socket.SHUT_WR)


def test_opaque_bytes_pass_with_a_half_closed_end(sides: dict[str, Side]) -> None:
    for side in sides.values():
        with dial(side, "tcp") as sock:
            payload = bytes(range(256)) * 8192
            sender = threading.Thread(target=_send_all, args=(sock, payload))
            sender.start()
            reader = Reader(sock)
            while reader.more():
                pass
            sender.join()
            assert reader.data == payload


def test_a_silent_opaque_connection_is_closed_after_its_time(sides: dict[str, Side]) -> None:
    for side in sides.values():
        with dial(side, "tcp") as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            assert sock.recv(1) == b""
