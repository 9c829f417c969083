"""The generator's client: what it writes a decoder reads back, and what it must not count it refuses."""

import struct
from collections.abc import Callable

import pytest
from hpack import Decoder, Encoder

from benchmarks.load.generate import DifferingHeaders
from benchmarks.load.h2load import connections_for, read
from benchmarks.load.wire import (
    END_HEADERS,
    END_STREAM,
    HEAD,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    LoadError,
    RequestHead,
    Wire,
)

Fields = list[tuple[bytes, bytes]]


def _frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of each frame."""
    found = []
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while at < len(data):
        word, flags, stream = HEAD.unpack_from(data, at)
        found.append((word & 0xFF, flags, stream, data[at + 9 : at + 9 + (word >> 8)]))
        at += 9 + (word >> 8)
    return found


class Peer:
    """A server's end: reads what the wire wrote with hpack, writes with hpack."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.wire = Wire(RequestHead("shop:1", "/a.B/C"), lambda stream, size: None, self.ended.append)
        self.decoder = Decoder()
        self.encoder = Encoder()

    def requests(self) -> list[Fields]:
        data = bytes(self.wire.out)
        self.wire.out.clear()
        blocks = [payload for kind, _, _, payload in _frames(data) if kind == HEADERS]
        return [
            [(bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)] for block in blocks
        ]

    def settings(self, key: int, value: int) -> None:
        payload = struct.pack(">HI", key, value)
        self.wire.receive(HEAD.pack(len(payload) << 8 | SETTINGS, 0, 0) + payload)

    def headers(self, stream: int, fields: dict[str, str], *, ended: bool) -> None:
        block = self.encoder.encode(list(fields.items()))
        flags = END_HEADERS | (END_STREAM if ended else 0)
        self.wire.receive(HEAD.pack(len(block) << 8 | HEADERS, flags, stream) + block)


def test_requests_say_the_same_in_all_three_forms() -> None:
    peer = Peer()
    for _ in range(2):
        peer.wire.open(b"")
    first, again = peer.requests()
    peer.settings(HEADER_TABLE_SIZE, 0)
    peer.decoder.max_allowed_table_size = 0  # from here on a decoder insists on the update
    for _ in range(2):
        peer.wire.open(b"")
    stateless, last = peer.requests()
    assert first == again == stateless == last
    assert dict(first)[b":path"] == b"/a.B/C" and dict(first)[b"te"] == b"trailers"


def test_no_two_calls_have_the_same_differing_headers() -> None:
    peer = Peer()
    headers = DifferingHeaders(seed=1)
    for _ in range(200):
        peer.wire.open(headers.next())
    values = [dict(fields) for fields in peer.requests()]
    for name in (b"grpc-timeout", b"traceparent", b"x-user", b"authorization"):
        assert len({fields[name] for fields in values}) == 200
    assert all(len(fields[b"traceparent"]) == 55 for fields in values)


def test_a_call_counts_when_it_ends_with_status_0_also_by_dynamic_table() -> None:
    peer = Peer()
    for second in range(4):
        stream = peer.wire.open()
        # the date changes, so the table does, and equal bytes stop meaning the same
        peer.headers(stream, {":status": "200", "date": f"second {second // 2}"}, ended=False)
        peer.headers(stream, {"grpc-status": "0"}, ended=True)
    assert peer.ended == [1, 3, 5, 7]
    stream = peer.wire.open()
    peer.headers(stream, {":status": "200", "date": "second 9"}, ended=False)
    with pytest.raises(LoadError, match="14"):
        peer.headers(stream, {"grpc-status": "14", "grpc-message": "no"}, ended=True)


def _reset(peer: Peer) -> None:
    peer.wire.receive(HEAD.pack(4 << 8 | RST_STREAM, 0, 1) + bytes(4))


def _without_status(peer: Peer) -> None:
    peer.headers(1, {":status": "200"}, ended=True)


def _http_error(peer: Peer) -> None:
    peer.headers(1, {":status": "503"}, ended=False)


def _data_ends(peer: Peer) -> None:
    peer.wire.receive(HEAD.pack(1 << 8, END_STREAM, 1) + b"x")


@pytest.mark.parametrize("end", [_reset, _without_status, _http_error, _data_ends])
def test_any_other_end_is_an_error(end: Callable[[Peer], None]) -> None:
    peer = Peer()
    peer.wire.open()
    with pytest.raises(LoadError):
        end(peer)


def test_a_small_window_is_an_error_and_not_a_wait_without_end() -> None:
    peer = Peer()
    peer.settings(INITIAL_WINDOW_SIZE, 10)
    with pytest.raises(LoadError, match="window"):
        peer.wire.send(peer.wire.open(), bytes(11), True)


GOOD = """finished in 174.83ms, 171600.17 req/s, 28.32MB/s
requests: 30 total, 30 started, 30 done, 30 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 30 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 4.95MB (5192144) total, 352.00KB (360444) headers (space savings 93.06%), 3.81MB (3990) data"""


def test_what_h2load_says_is_read_strictly() -> None:
    assert read(GOOD, 30, 3990) == pytest.approx(0.17483)
    for wrong in (
        GOOD.replace("30 succeeded", "29 succeeded"),
        GOOD.replace("30 2xx", "29 2xx"),
        GOOD.replace("(3990)", "(3857)"),  # a refusal is HTTP 200 without a message
        "",
    ):
        with pytest.raises(LoadError):
            read(wrong, 30, 3990)


@pytest.mark.parametrize("in_flight", [1, 10, 100, 1000])
def test_the_connections_carry_exactly_what_is_in_flight(in_flight: int) -> None:
    connections, streams = connections_for(in_flight)
    assert connections * streams == in_flight
    assert streams <= 100
