"""What a stranger's first bytes say, whole, cut anywhere, and by chance."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.proxy.config import ChainMatch, FilterChain, HttpManager
from sidecar.proxy.inspect import MAX_HELLO, MAX_LINE, NOT_TLS, Hello, http, tls


def hello(server_name: str | None, alpn: list[str]) -> bytes:
    """What Python's own TLS client says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=server_name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("name", "alpn", "found"),
    [
        ("Orders.Shop.test", ["h2", "http/1.1"], Hello(True, "orders.shop.test", ("h2", "http/1.1"))),
        ("a.test", [], Hello(True, "a.test", ())),
        (None, ["h2"], Hello(True, "", ("h2",))),
        (None, [], Hello(True)),
    ],
)
def test_a_hello_is_read_and_not_before_it_is_whole(name: str | None, alpn: list[str], found: Hello) -> None:
    data = hello(name, alpn)
    assert tls(data) == found
    assert tls(data + b"more") == found
    assert all(tls(data[:size]) is None for size in range(len(data)))


def test_a_hello_in_several_records_is_read() -> None:
    data = hello("a.test", ["h2"])
    message = data[5:]
    parts = [message[at : at + 50] for at in range(0, len(message), 50)]
    split = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)
    assert tls(split) == Hello(True, "a.test", ("h2",))


@pytest.mark.parametrize(
    "data", [b"PRI * HTTP/2", b"\x15\x03\x01\x00\x02\x02\x28", b"\x16\x02", b"\x16\x03\x01\x00\x01\x02"]
)
def test_what_is_no_hello_is_no_tls(data: bytes) -> None:
    assert tls(data) == NOT_TLS


def test_a_hello_without_end_says_nothing() -> None:
    endless = b"\x16\x03\x01\xff\xff\x01\x00\xff\xff" + b"\0" * MAX_HELLO
    assert tls(endless) == Hello(True)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2c"),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "http/1.1"),
        (b"POST /a?b=c HTTP/1.0\r\n", "http/1.0"),
        (b"CONNECT a:80 HTTP/1.1\r\n", "http/1.1"),
        (b"HELO a\r\n", ""),
        (b"\x00\x01", ""),
        (b"SSH-2.0-OpenSSH_9\r\n", ""),
        (b"G" * (MAX_LINE + 1), ""),
        (b"GET / SPDY/3\r\n", ""),
    ],
)
def test_http_is_told_from_what_is_not(data: bytes, found: str) -> None:
    assert http(data) == found


@pytest.mark.parametrize(
    "data", [b"", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", b"GET", b"GET / HTTP/1.", b"GET / HTTP/1.1"]
)
def test_http_that_has_only_begun_is_waited_for(data: bytes) -> None:
    assert http(data) is None


@given(st.binary(max_size=600))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    http(data)
    tls(data)
    tls(b"\x16\x03\x01" + len(data).to_bytes(2, "big") + b"\x01" + len(data).to_bytes(3, "big") + data)


@given(st.binary(min_size=1, max_size=40), st.integers(0, 10_000))
def test_a_hello_with_any_damage_is_read_without_an_error(damage: bytes, place: int) -> None:
    data = bytearray(hello("a.test", ["h2"]))
    at = place % len(data)
    data[at : at + len(damage)] = damage
    tls(bytes(data))


def chain(name: str, *server_names: str, transport: str = "", applications: tuple[str, ...] = ()) -> FilterChain:
    return FilterChain(name, ChainMatch(server_names, transport, applications), HttpManager(name))


async def test_the_most_specific_chain_takes_a_connection() -> None:
    import asyncio

    from sidecar.proxy.chain import Chain, find
    from sidecar.proxy.worker import Worker
    from sidecar.telemetry.stats import Stats

    worker = Worker(asyncio.get_running_loop(), Stats())
    configs = [
        chain("any"),
        chain("raw", transport="raw_buffer"),
        chain("h2c", transport="raw_buffer", applications=("h2c",)),
        chain("a", "a.shop.test", transport="tls"),
        chain("shop", "*.shop.test", transport="tls"),
        chain("shop h2", "*.shop.test", transport="tls", applications=("h2",)),
    ]
    chains = [Chain(config, worker, lambda _: ()) for config in configs]

    def taken(*arguments: object) -> str | None:
        found = find(chains, *arguments)  # type: ignore[arg-type]
        return found.config.name if found is not None else None

    assert taken("", "raw_buffer", ()) == "raw"
    assert taken("", "raw_buffer", ("h2c",)) == "h2c"
    assert taken("", "raw_buffer", ("http/1.1",)) == "raw"
    assert taken("a.shop.test", "tls", ("h2",)) == "a"
    assert taken("b.shop.test", "tls", ()) == "shop"
    assert taken("c.b.shop.test", "tls", ("http/1.1", "h2")) == "shop h2"
    assert taken("other.test", "tls", ("h2",)) == "any"
    assert taken("a.shop.test", "raw_buffer", ()) is None
