"""The connection core against `h2` as the peer, and rule by rule."""

from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.http2 import frames, headers
from sidecar.http2.connection import Connection, Handler, Role, Settings, Stream
from sidecar.http2.frames import ErrorCode

REQUEST = headers.encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b":authority", b"x")])


@dataclass
class Recorder(Handler):
    """A handler that writes down what it is told, and credits data at once."""

    events: list[tuple[object, ...]] = field(default_factory=list)
    streams: dict[int, Stream] = field(default_factory=dict)
    conn: Connection | None = None
    keeps_data: bool = False
    sent: int = 0
    too_large: int = 0

    def on_request(self, stream: Stream, block: bytes, ended: bool) -> None:
        self.streams[stream.id] = stream
        try:
            headers.split(block)
        except headers.TooLarge:
            self.too_large += 1
            return
        self.events.append(("request", stream.id, headers.decode(block), ended))

    def on_headers(self, stream: Stream, block: bytes, ended: bool) -> None:
        self.events.append(("headers", stream.id, headers.decode(block), ended))

    def on_data(self, stream: Stream, payload: bytes, credit: int, ended: bool) -> None:
        self.events.append(("data", stream.id, payload, ended))
        if not self.keeps_data and self.conn is not None:
            self.conn.credit(stream, credit)

    def on_sent(self, stream: Stream, credit: int) -> None:
        self.sent += credit

    def on_reset(self, stream: Stream, code: int, was_refused: bool) -> None:
        self.events.append(("reset", stream.id, ErrorCode(code).name, was_refused))

    def on_goaway(self, code: int) -> None:
        self.events.append(("goaway", code))

    def on_capacity(self) -> None:
        self.events.append(("capacity",))


def server(**kwargs: int) -> tuple[Connection, Recorder]:
    recorder = Recorder()
    conn = Connection(Role.SERVER, recorder, Settings(**kwargs))
    recorder.conn = conn
    return conn, recorder


def client() -> tuple[Connection, Recorder]:
    recorder = Recorder()
    conn = Connection(Role.CLIENT, recorder, Settings())
    recorder.conn = conn
    return conn, recorder


def take(conn: Connection) -> bytes:
    return conn.take_output()


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return frames.HEAD.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def opened(conn: Connection, *frames_: bytes) -> None:
    conn.receive(frames.PREFACE + frames.settings({}) + b"".join(frames_), 0.0)


def codes(conn: Connection) -> list[tuple[str, int, str]]:
    """GOAWAY and RST_STREAM frames in the output: (kind, stream, code)."""
    data, found, at = take(conn), [], 0
    while at < len(data):
        word, _, stream_id = frames.HEAD.unpack_from(data, at)
        payload = data[at + 9 : at + 9 + (word >> 8)]
        if word & 0xFF == frames.GOAWAY:
            found.append(("GOAWAY", 0, ErrorCode(frames.parse_goaway(payload)[1]).name))
        if word & 0xFF == frames.RST_STREAM:
            found.append(("RST_STREAM", stream_id, ErrorCode(int.from_bytes(payload, "big")).name))
        at += 9 + (word >> 8)
    return found


def talk(ours: Connection, theirs: h2.connection.H2Connection) -> list[h2.events.Event]:
    """Exchange bytes until both are silent."""
    events: list[h2.events.Event] = []
    while True:
        to_them, to_us = take(ours), theirs.data_to_send()
        if not to_them and not to_us:
            return events
        if to_them:
            events += theirs.receive_data(to_them)
        if to_us:
            ours.receive(to_us, 0.0)


def test_a_whole_call_with_a_reference_client() -> None:
    ours, seen = server()
    theirs = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    theirs.initiate_connection()
    theirs.send_headers(
        1, [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":authority", "x"), ("te", "trailers")]
    )
    theirs.send_data(1, b"hello", end_stream=True)
    talk(ours, theirs)
    assert seen.events[-2][:2] == ("request", 1)
    assert seen.events[-1] == ("data", 1, b"hello", True)
    stream = seen.streams[1]
    ours.send_headers(stream, headers.encode([(b":status", b"200")]), False)
    ours.send_data(stream, b"world", 0, False)
    ours.send_headers(stream, headers.encode([(b"grpc-status", b"0")]), True)
    got = talk(ours, theirs)
    kinds = [type(event).__name__ for event in got]
    assert kinds[-4:] == ["ResponseReceived", "DataReceived", "TrailersReceived", "StreamEnded"]
    assert ours.streams == {}


def test_a_whole_call_with_a_reference_server() -> None:
    ours, seen = client()
    theirs = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    theirs.initiate_connection()
    talk(ours, theirs)
    stream = ours.open_stream(REQUEST, False)
    ours.send_data(stream, b"hello", 0, True)
    talk(ours, theirs)
    theirs.send_headers(1, [(":status", "200")])
    theirs.send_data(1, b"world")
    theirs.send_headers(1, [("grpc-status", "0")], end_stream=True)
    talk(ours, theirs)
    assert [event[0] for event in seen.events if event[0] != "capacity"] == ["headers", "data", "headers"]
    assert seen.events[-1][2:] == ([(b"grpc-status", b"0")], True)


def test_from_the_second_block_on_a_client_is_asked_for_stateless_headers() -> None:
    ours, seen = server()
    theirs = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    theirs.initiate_connection()
    request = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":authority", "x"), ("x-user", "ann")]
    for stream_id in (1, 3, 5, 7):
        theirs.send_headers(stream_id, request, end_stream=True)
        talk(ours, theirs)
    blocks = [event[2] for event in seen.events if event[0] == "request"]
    assert len(blocks) == 4 and all(block == blocks[0] for block in blocks)
    assert theirs.remote_settings[h2.settings.SettingCodes.HEADER_TABLE_SIZE] == 0


@settings(max_examples=60)
@given(st.lists(st.integers(min_value=1, max_value=60), max_size=40), st.binary(min_size=1, max_size=70_000))
def test_bytes_may_come_in_any_pieces(cuts: list[int], body: bytes) -> None:
    whole = frames.PREFACE + frames.settings({}) + frame(1, 4, 1, REQUEST)
    for at in range(0, len(body), 16_000):
        part = body[at : at + 16_000]
        whole += frame(0, 1 if at + 16_000 >= len(body) else 0, 1, part)
    conn, seen = server()
    at = 0
    for cut in cuts:
        conn.receive(whole[at : at + cut], 0.0)
        at += cut
    conn.receive(whole[at:], 0.0)
    data = [event for event in seen.events if event[0] == "data"]
    assert b"".join(bytes(event[2]) for event in data) == body  # type: ignore[call-overload]
    assert data[-1][3] is True


@settings(max_examples=60)
@given(
    st.lists(st.integers(min_value=0, max_value=40_000), min_size=1, max_size=8),
    st.integers(min_value=0, max_value=70_000),
    st.lists(st.integers(min_value=1, max_value=50_000), max_size=8),
)
def test_data_leaves_in_order_within_the_windows(sizes: list[int], window: int, updates: list[int]) -> None:
    conn, seen = server()
    opened(conn, frames.settings({frames.INITIAL_WINDOW_SIZE: window}), frame(1, 5, 1, REQUEST))
    conn.receive(frames.window_update(0, 1_000_000), 0.0)
    take(conn)
    stream = seen.streams[1]
    expected = b""
    for number, size in enumerate(sizes):
        payload = bytes([number]) * size
        expected += payload
        conn.send_data(stream, payload, size, number == len(sizes) - 1)
    allowed = window
    for update in updates:
        conn.receive(frames.window_update(1, update), 0.0)
        allowed += update
    data, got, at = take(conn), b"", 0
    while at < len(data):
        word, _, _ = frames.HEAD.unpack_from(data, at)
        if word & 0xFF == frames.DATA:
            got += data[at + 9 : at + 9 + (word >> 8)]
        at += 9 + (word >> 8)
    assert got == expected[: min(allowed, len(expected))]


def test_trailers_wait_behind_data_that_waits() -> None:
    conn, seen = server()
    opened(conn, frames.settings({frames.INITIAL_WINDOW_SIZE: 3}), frame(1, 5, 1, REQUEST))
    take(conn)
    stream = seen.streams[1]
    conn.send_headers(stream, headers.encode([(b":status", b"200")]), False)
    assert conn.send_data(stream, b"hello", 5, False) is False
    conn.send_headers(stream, headers.encode([(b"grpc-status", b"0")]), True)
    before = take(conn)
    assert before.endswith(b"hel")
    conn.receive(frames.window_update(1, 10), 0.0)
    after = take(conn)
    assert after.startswith(frame(0, 0, 1, b"lo"))
    assert after.endswith(frame(1, 5, 1, headers.encode([(b"grpc-status", b"0")])))
    assert seen.sent == 5


def test_a_paused_socket_holds_data_back_and_lets_it_go_on_resume() -> None:
    conn, seen = server()
    opened(conn, frame(1, 5, 1, REQUEST))
    conn.pause()
    take(conn)
    assert conn.send_data(seen.streams[1], b"hello", 5, True) is False
    assert take(conn) == b""
    conn.receive(frames.window_update(0, 7), 0.0)
    assert take(conn) == b""
    conn.resume()
    assert take(conn) == frame(0, 1, 1, b"hello")


def test_window_is_given_back_only_for_credited_bytes() -> None:
    conn, seen = server(initial_stream_window=1000)
    seen.keeps_data = True
    opened(conn, frame(1, 4, 1, REQUEST), frame(0, 0, 1, b"x" * 600))
    assert frames.window_update(1, 600) not in take(conn)
    conn.credit(seen.streams[1], 600)
    assert frames.window_update(1, 600) in take(conn)


def test_credit_of_data_that_was_never_sent_can_be_taken_back() -> None:
    conn, seen = server()
    opened(conn, frames.settings({frames.INITIAL_WINDOW_SIZE: 2}), frame(1, 5, 1, REQUEST))
    stream = seen.streams[1]
    conn.send_data(stream, b"hello", 5, False)
    conn.receive(frames.rst_stream(1, 8), 0.0)
    assert conn.take_unsent(stream) + seen.sent == 5


def test_goaway_refuses_the_streams_above_its_last() -> None:
    conn, seen = client()
    conn.receive(frames.settings({}), 0.0)
    first, second = conn.open_stream(REQUEST, True), conn.open_stream(REQUEST, True)
    conn.receive(frames.goaway(first.id, 0), 0.0)
    assert ("reset", second.id, "REFUSED_STREAM", True) in seen.events
    assert first.id in conn.streams
    assert not conn.has_room()


def test_draining_says_goaway_twice_with_a_ping_between() -> None:
    conn, seen = server()
    opened(conn, frame(1, 5, 1, REQUEST))
    take(conn)
    conn.drain()
    assert take(conn) == frames.goaway(frames.LARGEST_WINDOW, 0, b"draining") + frames.ping(b"draining")
    conn.receive(frame(1, 5, 3, REQUEST), 0.0)
    assert seen.events[-1][:2] == ("request", 3)
    conn.receive(frames.ping(b"draining", ack=True), 0.0)
    assert frames.goaway(3, 0) in take(conn)
    conn.receive(frame(1, 5, 5, REQUEST), 0.0)
    assert codes(conn) == [("RST_STREAM", 5, "REFUSED_STREAM")]


def test_a_client_keeps_to_the_peers_limit_of_streams() -> None:
    conn, _ = client()
    conn.receive(frames.settings({frames.MAX_CONCURRENT_STREAMS: 1}), 0.0)
    assert conn.has_room()
    conn.open_stream(REQUEST, True)
    assert not conn.has_room()


CONNECTION_FAULTS = {
    "DATA on stream 0": (frame(0, 0, 0, b"x"), "PROTOCOL_ERROR"),
    "empty DATA on an idle stream": (frame(0, 0, 9), "PROTOCOL_ERROR"),
    "HEADERS on stream 0": (frame(1, 4, 0, REQUEST), "PROTOCOL_ERROR"),
    "HEADERS on an even stream": (frame(1, 4, 2, REQUEST), "PROTOCOL_ERROR"),
    "padding longer than the frame": (frame(1, 4 | 8, 3, b"\xff" + REQUEST), "PROTOCOL_ERROR"),
    "RST_STREAM on an idle stream": (frames.rst_stream(9, 0), "PROTOCOL_ERROR"),
    "RST_STREAM of 3 bytes": (frame(3, 0, 1, b"abc"), "FRAME_SIZE_ERROR"),
    "SETTINGS on a stream": (frame(4, 0, 1), "PROTOCOL_ERROR"),
    "SETTINGS of 5 bytes": (frame(4, 0, 0, b"12345"), "FRAME_SIZE_ERROR"),
    "SETTINGS acknowledgement that nobody waits for": (frames.SETTINGS_ACK * 2, "PROTOCOL_ERROR"),
    "PRIORITY of 4 bytes on an idle stream": (frame(2, 0, 9, b"1234"), "FRAME_SIZE_ERROR"),
    "SETTINGS acknowledgement with a payload": (frame(4, 1, 0, b"123456"), "FRAME_SIZE_ERROR"),
    "ENABLE_PUSH of 2": (frames.settings({2: 2}), "PROTOCOL_ERROR"),
    "initial window too large": (frames.settings({4: 2**31}), "FLOW_CONTROL_ERROR"),
    "frame size too small": (frames.settings({5: 100}), "PROTOCOL_ERROR"),
    "PUSH_PROMISE": (frame(5, 4, 1, b"\0\0\0\x02" + REQUEST), "PROTOCOL_ERROR"),
    "PING on a stream": (frame(6, 0, 1, b"12345678"), "PROTOCOL_ERROR"),
    "PING of 7 bytes": (frame(6, 0, 0, b"1234567"), "FRAME_SIZE_ERROR"),
    "GOAWAY on a stream": (frame(7, 0, 1, b"\0" * 8), "PROTOCOL_ERROR"),
    "WINDOW_UPDATE by 0": (frames.window_update(0, 0), "PROTOCOL_ERROR"),
    "connection window above 2^31-1": (frames.window_update(0, 2**31 - 1), "FLOW_CONTROL_ERROR"),
    "CONTINUATION without HEADERS": (frame(9, 4, 1, b""), "PROTOCOL_ERROR"),
    "a frame inside a header block": (frame(1, 0, 3, REQUEST) + frames.ping(b"12345678"), "PROTOCOL_ERROR"),
    "a frame over the size limit": (frame(0, 0, 1, b"x" * 16_385), "FRAME_SIZE_ERROR"),
    "a block that is no HPACK": (frame(1, 4, 3, b"\xff\xff\xff\xff\xff"), "COMPRESSION_ERROR"),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_a_fault_of_the_connection_ends_it_with_goaway(name: str) -> None:
    data, code = CONNECTION_FAULTS[name]
    conn, _ = server()
    opened(conn, frame(1, 4, 1, REQUEST), data)
    assert codes(conn)[-1] == ("GOAWAY", 0, code)
    assert conn.is_closed


STREAM_FAULTS = {
    "WINDOW_UPDATE by 0": (frames.window_update(1, 0), "PROTOCOL_ERROR"),
    "stream window above 2^31-1": (frames.window_update(1, 2**31 - 1), "FLOW_CONTROL_ERROR"),
    "trailers that do not end the stream": (frame(1, 4, 1, REQUEST), "PROTOCOL_ERROR"),
    "PRIORITY of 4 bytes": (frame(2, 0, 1, b"1234"), "FRAME_SIZE_ERROR"),
    "a stream that depends on itself": (frame(2, 0, 1, b"\0\0\0\x01\x10"), "PROTOCOL_ERROR"),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_a_fault_of_a_stream_resets_only_it(name: str) -> None:
    data, code = STREAM_FAULTS[name]
    conn, seen = server()
    opened(conn, frame(1, 4, 1, REQUEST), data, frame(1, 5, 3, REQUEST))
    assert codes(conn) == [("RST_STREAM", 1, code)]
    assert ("reset", 1, code, False) in seen.events
    assert seen.events[-1][:2] == ("request", 3)


def test_data_after_the_end_of_a_stream_is_refused() -> None:
    conn, _ = server()
    opened(conn, frame(1, 5, 1, REQUEST), frame(0, 0, 1, b"late"))
    assert codes(conn) == [("RST_STREAM", 1, "STREAM_CLOSED")]


def test_frames_under_way_to_a_stream_that_we_reset_are_dropped() -> None:
    conn, seen = server()
    opened(conn, frame(1, 4, 1, REQUEST))
    conn.reset(seen.streams[1], ErrorCode.CANCEL)
    take(conn)
    conn.receive(frame(0, 1, 1, b"late"), 0.0)
    assert codes(conn) == []


def test_more_streams_than_announced_are_refused_and_the_others_live() -> None:
    conn, seen = server(max_concurrent_streams=2)
    opened(conn, *(frame(1, 4, stream_id, REQUEST) for stream_id in (1, 3, 5)))
    assert codes(conn) == [("RST_STREAM", 5, "REFUSED_STREAM")]
    assert set(conn.streams) == {1, 3}
    assert len(seen.streams) == 2


def test_a_flood_of_pings_ends_the_connection() -> None:
    conn, _ = server()
    opened(conn)
    conn.receive(frames.ping(b"12345678") * 10_001, 0.0)
    assert codes(conn)[-1] == ("GOAWAY", 0, "ENHANCE_YOUR_CALM")


def test_as_many_pings_spread_over_time_do_not() -> None:
    conn, _ = server()
    opened(conn)
    for second in range(12):
        conn.receive(frames.ping(b"12345678") * 1_000, float(second))
        take(conn)
    assert not conn.is_closed


def test_a_header_block_without_end_is_cut_off() -> None:
    conn, _ = server()
    opened(conn, frame(1, 0, 1, b""), *(frame(9, 0, 1, b"") for _ in range(33)))
    assert codes(conn)[-1] == ("GOAWAY", 0, "ENHANCE_YOUR_CALM")


def test_more_data_than_the_window_is_an_error() -> None:
    conn, seen = server(initial_stream_window=10)
    seen.keeps_data = True
    opened(conn, frame(1, 4, 1, REQUEST), frame(0, 0, 1, b"x" * 11))
    assert codes(conn)[-1] == ("GOAWAY", 0, "FLOW_CONTROL_ERROR")


@pytest.mark.parametrize("size", range(24 + 4 + 1))
def test_a_preface_may_come_in_two_pieces(size: int) -> None:
    conn, seen = server()
    whole = frames.PREFACE + frames.settings({}) + frame(1, 5, 1, REQUEST)
    conn.receive(whole[:size], 0.0)
    conn.receive(whole[size:], 0.0)
    assert seen.events[-1][:2] == ("request", 1)


def test_the_first_frame_of_either_side_is_settings() -> None:
    conn, _ = server()
    conn.receive(frames.PREFACE + frame(1, 5, 1, REQUEST), 0.0)
    assert codes(conn)[-1] == ("GOAWAY", 0, "PROTOCOL_ERROR")
    conn, _ = client()
    conn.receive(frames.ping(b"12345678"), 0.0)
    assert conn.is_closed


def test_a_client_that_says_goaway_may_go_on() -> None:
    conn, seen = server()
    opened(conn, frames.goaway(0, 0), frame(1, 5, 1, REQUEST))
    assert seen.events[-1][:2] == ("request", 1)


def test_frames_to_a_stream_whose_reset_is_long_ago_are_dropped_too() -> None:
    conn, seen = server()
    ids = range(1, 2 * 1_500, 2)
    opened(conn, *(frame(1, 4, stream_id, REQUEST) for stream_id in ids))
    for stream_id in ids:
        conn.reset(seen.streams[stream_id], ErrorCode.CANCEL)
    take(conn)
    conn.receive(b"".join(frame(0, 1, stream_id, b"late") for stream_id in ids), 0.0)
    assert codes(conn) == []
    assert not conn.is_closed


def test_a_client_that_never_acknowledges_settings_is_sent_away() -> None:
    conn, _ = server()
    opened(conn)
    for stream_id in range(1, 2 * 2_100, 2):
        conn.receive(frame(1, 5, stream_id, REQUEST) + frames.rst_stream(stream_id, 8), 0.001 * stream_id)
    assert codes(conn)[-1] == ("GOAWAY", 0, "SETTINGS_TIMEOUT")


def test_a_block_of_too_many_fields_reaches_the_handler_cut_to_one_above_the_limit() -> None:
    conn, seen = server()
    opened(conn, frame(1, 5, 1, REQUEST + b"\x82" * 10_000))
    assert not conn.is_closed
    assert seen.too_large == 1


def test_something_that_is_not_http2_is_turned_away() -> None:
    conn, _ = server()
    conn.receive(b"GET / HTTP/1.1\r\n\r\n", 0.0)
    assert codes(conn)[-1] == ("GOAWAY", 0, "PROTOCOL_ERROR")


def test_a_long_header_block_is_written_with_continuations() -> None:
    ours, _ = client()
    theirs = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    theirs.initiate_connection()
    talk(ours, theirs)
    block = REQUEST + headers.encode([(b"x-long", bytes([200]) * 40_000)])
    theirs.decoder.max_header_list_size = 1 << 20
    ours.open_stream(block, True)
    assert "RequestReceived" in [type(event).__name__ for event in talk(ours, theirs)]


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_core_raise(data: bytes) -> None:
    conn, _ = server()
    opened(conn, frame(1, 4, 1, REQUEST), data)
    conn.receive(data, 1.0)
