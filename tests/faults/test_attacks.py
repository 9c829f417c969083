"""Attacks on a listener: what the attacker gets, that a well-behaved client beside it keeps its latency, that all is given back.

Each attack is bounded in bytes and repeated a few times between calm phases, so that both medians come from the same minute of the same machine.
"""

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import SHUT_RDWR, socket

import hpack
import pytest

from tests.differential import script
from tests.differential.wire import PREFACE, frame, plain_block, settings
from tests.faults.target import HELLO, MIB, PATIENCE_S, REQUEST, Ending, Neighbour, Target
from tests.waiting import eventually

END_HEADERS, END_STREAM = 4, 1
STATELESS = settings({"HEADER_TABLE_SIZE": 0})
ROUNDS = 3
SLACK_S = 0.01
"""A machine that others use is now and then late by so much, whatever is attacked."""


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        target = Target(Path(folder))
        target.open()
        for _ in range(3):
            target.attack(
                frame("PING", payload=b"warm  up"), until=lambda ending: len(ending.data) > 50
            )  # what the first connections allocate is no leak
        yield target
        target.close()


@pytest.fixture(autouse=True)
def gives_everything_back(target: Target) -> Iterator[None]:
    target.answer([])
    before = target.held()
    yield
    assert target.engine.is_running, target.engine.log.read_text()[-4000:]

    def is_back() -> bool:
        now = target.held()
        return now.connections <= before.connections and now.calls <= before.calls and now.files <= before.files + 2

    eventually(is_back, timeout_s=PATIENCE_S, message=f"before {before}, after {target.held()}")
    assert target.held().rss - before.rss < 32 * MIB


def beside_a_neighbour(
    target: Target, attack: Callable[[], Ending], rounds: int = ROUNDS, listener: str = "main"
) -> list[Ending]:
    """Run an attack a few times beside a client whose calls must all succeed, and about as fast as without it."""
    endings: list[Ending] = []
    with Neighbour(target, listener) as neighbour:
        for number in range(rounds):
            neighbour.during("calm", 25 * (number + 1))
            neighbour.enter("attacked")
            endings.append(attack())
            neighbour.during("attacked", 15 * (number + 1))
    assert not neighbour.failures
    assert neighbour.median("attacked") <= 2 * neighbour.median("calm") + SLACK_S
    return endings


@dataclass(frozen=True)
class Flood:
    """Frames that end the attacker's connection."""

    payload: bytes
    code: str
    limit: str


def _request(stream_id: int, flags: int = END_HEADERS | END_STREAM) -> bytes:
    return frame("HEADERS", stream_id, flags, REQUEST)


def _rapid_reset(count: int) -> bytes:
    cancel = (8).to_bytes(4, "big")
    return b"".join(
        _request(stream_id, END_HEADERS) + frame("RST_STREAM", stream_id, 0, cancel)
        for stream_id in range(1, 2 * count, 2)
    )


FLOODS = {
    "rapid reset": Flood(_rapid_reset(2_000), "ENHANCE_YOUR_CALM", "premature_resets"),
    "CONTINUATION without end": Flood(
        frame("HEADERS", 1, 0, REQUEST) + frame("CONTINUATION", 1, 0, b"\x00\x01a\x01b") * 10_000,
        "ENHANCE_YOUR_CALM",
        "CONTINUATION flood",
    ),
    "large CONTINUATIONs": Flood(
        frame("HEADERS", 1, 0, REQUEST) + frame("CONTINUATION", 1, 0, b"\x00" * 16_384) * 20,
        "ENHANCE_YOUR_CALM",
        "CONTINUATION flood",
    ),
    "SETTINGS": Flood(settings({"INITIAL_WINDOW_SIZE": 70_000}) * 20_000, "ENHANCE_YOUR_CALM", "SETTINGS flood"),
    "PING": Flood(frame("PING", payload=b"attack!!") * 20_000, "ENHANCE_YOUR_CALM", "PING flood"),
    "empty DATA": Flood(_request(1, END_HEADERS) + frame("DATA", 1) * 20_000, "ENHANCE_YOUR_CALM", "empty DATA flood"),
    "PRIORITY": Flood(frame("PRIORITY", 3, 0, b"\0\0\0\0\1") * 20_000, "ENHANCE_YOUR_CALM", "PRIORITY flood"),
    "frames of no known type": Flood(frame(0xAB, 0, 0, b"") * 20_000, "ENHANCE_YOUR_CALM", "unknown frame flood"),
    "WINDOW_UPDATE of the connection": Flood(
        frame("WINDOW_UPDATE", payload=b"\0\0\0\1") * 20_000, "ENHANCE_YOUR_CALM", "WINDOW_UPDATE flood"
    ),
    "WINDOW_UPDATE of a stream": Flood(
        _request(1, END_HEADERS) + frame("WINDOW_UPDATE", 1, 0, b"\0\0\0\1") * 20_000,
        "ENHANCE_YOUR_CALM",
        "WINDOW_UPDATE flood",
    ),
    "resets of streams that are over": Flood(
        _request(1, END_HEADERS) + frame("RST_STREAM", 1, 0, b"\0\0\0\x08") * 20_000, "ENHANCE_YOUR_CALM", "reset flood"
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_the_attackers_connection_and_nothing_else(target: Target, name: str) -> None:
    flood = FLOODS[name]
    before = target.exceeded(flood.limit)
    endings = beside_a_neighbour(target, lambda: target.attack(flood.payload))
    assert [(ending.goaway, ending.is_closed) for ending in endings] == [(flood.code, True)] * ROUNDS
    assert target.exceeded(flood.limit) == before + ROUNDS


def test_a_header_bomb_costs_its_sender_the_connection(target: Target) -> None:
    """One entry of 4 KB in the dynamic table, then 16,000 references of one byte to it: 64 MB if they were written out."""
    encoder = hpack.Encoder()
    entry = encoder.encode([("x-bomb", "b" * 3_900)], huffman=False)
    block = REQUEST + entry + b"\xbe" * 16_000
    endings = beside_a_neighbour(target, lambda: target.attack(_long_headers(1, block)))
    assert [(ending.goaway, ending.is_closed) for ending in endings] == [("COMPRESSION_ERROR", True)] * ROUNDS


def _long_headers(stream_id: int, block: bytes) -> bytes:
    parts = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    flags = [END_STREAM] + [0] * (len(parts) - 1)
    flags[-1] |= END_HEADERS
    return b"".join(
        frame("CONTINUATION" if number else "HEADERS", stream_id, flags[number], part)
        for number, part in enumerate(parts)
    )


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([(f"x-{number}", "v") for number in range(150)], id="too many"),
        pytest.param([("x-large", "v" * 70_000)], id="too large"),
    ],
)
def test_too_many_headers_are_answered_and_the_connection_lives(target: Target, extra: list[tuple[str, str]]) -> None:
    good = _request(101)
    large = _long_headers(1, plain_block([*script.fields(script.GRPC), *extra]))
    plain = [(":method", "GET"), (":scheme", "http"), (":path", "/a"), (":authority", "shop")]
    large += _long_headers(3, plain_block([*plain, *extra]))

    def attack() -> Ending:
        return target.attack(large + good, until=lambda ending: ending.headers == 4)

    for ending in beside_a_neighbour(target, attack):
        assert (ending.goaway, ending.headers, ending.is_closed) == ("", 4, False)  # the good call has trailers too
        assert b"(flag DPE)" in ending.data


def test_a_client_that_opens_no_window_is_bounded_in_memory_and_ended_after_its_silence(target: Target) -> None:
    """200 calls whose answers of 1 MiB find no window: their streams are reset after `stream_idle_timeout`, the neighbour's answers pass
    through the same connection to the endpoint all the while."""
    target.answer(["ok"])
    streams = 100
    before, ended = target.held(), target.metric("remora_ended_total", why="quiet call")
    ids = range(1, 2 * streams, 2)
    payload = b"".join(_request(stream_id, END_HEADERS) for stream_id in ids)
    payload += b"".join(frame("DATA", stream_id, END_STREAM, script.message("x" * 16_000)) for stream_id in ids)
    no_window = PREFACE + settings({"INITIAL_WINDOW_SIZE": 0}) + frame("SETTINGS", flags=1)

    def attack() -> Ending:
        return target.attack(payload, hello=no_window, until=lambda ending: len(ending.resets) == streams)

    peak = [0]
    watcher = threading.Thread(target=_watch, args=(target, peak))
    watcher.start()
    endings = beside_a_neighbour(target, attack, rounds=2)
    watcher.join(PATIENCE_S)
    assert peak[0] - before.rss < 64 * MIB
    assert [len(ending.resets) for ending in endings] == [streams, streams]
    assert target.metric("remora_ended_total", why="quiet call") >= ended + 2 * streams


def _watch(target: Target, peak: list[int]) -> None:
    end = time.monotonic() + 4.0
    while time.monotonic() < end:
        peak[0] = max(peak[0], target.held().rss)
        time.sleep(0.2)


def test_a_client_that_reads_nothing_is_cut_when_its_answers_pile_up(target: Target) -> None:
    """50,000 calls to nowhere, each answered, none of the answers read."""
    before = target.exceeded("max_unread_bytes")
    request = [(":method", "POST"), (":scheme", "http"), (":path", "/nowhere"), (":authority", "shop")]
    block = plain_block([*request, ("content-type", "application/grpc")])

    def attack() -> Ending:
        with target.dial(receive_buffer=4096) as sock, contextlib.suppress(OSError):
            _agree_on_stateless_headers(sock)
            for start in range(5, 100_005, 2_000):
                ids = range(start, start + 2_000, 2)
                sock.sendall(b"".join(frame("HEADERS", each, END_HEADERS | END_STREAM, block) for each in ids))
                time.sleep(0.05)
            eventually(lambda: target.exceeded("max_unread_bytes") == before + 1, timeout_s=PATIENCE_S)
        return Ending()

    beside_a_neighbour(target, attack, rounds=1, listener="tunnel")
    assert target.exceeded("max_unread_bytes") == before + 1


def test_connections_that_say_nothing_are_closed_in_time(target: Target) -> None:
    before = target.metric("remora_detect_timeouts_total")
    socks = [target.dial("quick") for _ in range(100)]
    try:
        for sock in socks:
            sock.settimeout(PATIENCE_S)
            assert sock.recv(1) == b""
    finally:
        for sock in socks:
            sock.close()
    assert target.metric("remora_detect_timeouts_total") == before + 100


def test_a_client_that_is_gone_without_a_word_is_found_by_its_silence(target: Target) -> None:
    """It holds a call open and answers no PING, as one whose machine lost its power."""
    target.answer(["hold"])
    before = target.metric("remora_ended_total", why="keepalive")
    ending = target.attack(_request(1, END_HEADERS), listener="watched")
    assert ending.is_closed
    assert target.metric("remora_ended_total", why="keepalive") == before + 1


def test_one_connection_too_many_is_refused_and_the_old_ones_live(target: Target) -> None:
    refused = target.metric("remora_connections_refused_total")
    with Neighbour(target, "few") as neighbour:
        neighbour.during("calm", 5)
        others = [target.dial("few") for _ in range(4)]
        eventually(lambda: target.metric("remora_connections") >= 5)
        try:
            for _ in range(20):
                with target.dial("few") as sock, contextlib.suppress(ConnectionError):
                    assert sock.recv(1) == b""
            neighbour.during("after", 20)
        finally:
            for sock in others:
                sock.close()
    assert not neighbour.failures
    assert target.metric("remora_connections_refused_total") == refused + 20


def _agree_on_stateless_headers(sock: socket) -> None:
    """The sidecar asks for headers without state at the second request; until the attacker grants that it gets only so far."""
    sock.sendall(HELLO + frame("WINDOW_UPDATE", payload=b"\x7f\0\0\0") + _request(1) + _request(3))
    data = b""
    while STATELESS not in data:
        data += sock.recv(65_536)
    sock.sendall(frame("SETTINGS", flags=1))


def _send_distinct_blocks(target: Target, count: int, at_once: int, least: int) -> Callable[[], Ending]:
    """Requests of which no two are alike: in their path, which routing reads, or in a header, which it does not. At least so many are
    read; the others are more than the streams that a client may have at once."""
    misses = target.metric("remora_decision_misses_total")

    def attack() -> Ending:
        with target.dial() as sock:
            _agree_on_stateless_headers(sock)
            reader = threading.Thread(target=_drain, args=(sock,))
            reader.start()
            for start in range(2, count + 2, at_once):
                ids = range(start, start + at_once)
                sock.sendall(
                    b"".join(frame("HEADERS", 2 * each + 1, END_HEADERS | END_STREAM, _distinct(each)) for each in ids)
                )
                time.sleep(0.05)
            eventually(lambda: target.metric("remora_decision_misses_total") >= misses + least, timeout_s=60)
            eventually(lambda: target.metric("remora_calls_running") <= 2, timeout_s=60)
            sock.shutdown(SHUT_RDWR)
            reader.join(PATIENCE_S)
        return Ending()

    return attack


def _distinct(number: int) -> bytes:
    path = b"/shop.Orders/Get%d" % number if number % 2 else b"/shop.Orders/Get"
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path.decode()), (":authority", "shop")]
    return plain_block([*fields, ("content-type", "application/grpc"), ("te", "trailers"), ("x-n", str(number) * 20)])


def _drain(sock: socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(65_536):
            pass


def test_header_blocks_that_all_differ_do_not_grow_the_decision_cache(target: Target) -> None:
    before = target.held()
    beside_a_neighbour(target, _send_distinct_blocks(target, 2_000, at_once=50, least=2_000), rounds=1)
    assert target.held().rss - before.rss < 32 * MIB


@pytest.mark.slow
def test_a_million_header_blocks_that_all_differ_do_not_grow_the_decision_cache(target: Target) -> None:
    before = target.held()
    _send_distinct_blocks(
        target, 1_000_000, at_once=1_000, least=100_000
    )()  # as fast as it can: a core is busy with it
    with Neighbour(target) as neighbour:
        neighbour.during("after")
    assert not neighbour.failures
    assert target.held().rss - before.rss < 64 * MIB


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"CONNECT shop HTTP/1.1\r\nhost: shop\r\n\r\n", b"400"),
        (b"CONNECT shop:http HTTP/1.1\r\nhost: shop\r\n\r\n", b"400"),
        (b"CONNECT shop:99999 HTTP/1.1\r\nhost: shop\r\n\r\n", b"400"),
        (b"CONNECT :80 HTTP/1.1\r\nhost: shop\r\n\r\n", b"400"),
        (b"CONNECT shop:80 extra HTTP/1.1\r\n\r\n", b"400"),
        (b"CONNECT shop:80 SPDY/3\r\n\r\n", b"400"),
        (b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n", b"404"),
        (b"CONNECT shop:80 HTTP/1.1\r\nx: " + b"y" * 40_000, b"431"),
        (b"CONNECT \x00\xff:80 HTTP/1.1\r\n\r\n", b"404"),
    ],
)
def test_a_malformed_connect_is_answered_and_closed(target: Target, text: bytes, status: bytes) -> None:
    ending = target.attack(text, listener="tunnel", hello=b"")
    assert ending.data.startswith(b"HTTP/1.1 " + status)
    assert ending.is_closed
