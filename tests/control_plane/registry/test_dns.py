"""DNS: what answers mean, what no bytes can do, and asking a server."""

import struct
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.registry import dns
from control_plane.registry.dns import Answer, Malformed, NotResolved, Resolver
from tests.control_plane.registry.name_server import AAAA, CNAME, A, NameServer, serving

LOOP: Final = pytest.mark.asyncio(loop_scope="session")


@LOOP
async def test_addresses_and_the_shortest_time_that_one_of_them_holds() -> None:
    async with serving() as server:
        server.zone["pay.example", A] = [(A, "192.0.2.2", 300), (A, "192.0.2.1", 60)]
        assert await Resolver([server.address]).resolve("pay.example") == Answer(("192.0.2.1", "192.0.2.2"), 60)


@LOOP
async def test_an_alias_holds_no_longer_than_itself() -> None:
    async with serving() as server:
        server.zone["pay.example", A] = [(CNAME, "www.example", 20), (A, "192.0.2.1", 300)]
        assert await Resolver([server.address]).resolve("pay.example") == Answer(("192.0.2.1",), 20)


@LOOP
async def test_a_name_that_has_only_the_longer_addresses() -> None:
    async with serving() as server:
        server.zone["pay.example", A] = []
        server.zone["pay.example", AAAA] = [(AAAA, "2001:db8::1", 30)]
        assert await Resolver([server.address]).resolve("pay.example") == Answer(("2001:db8::1",), 30)
        assert [kind for _, kind in server.asked] == [A, AAAA]


@LOOP
async def test_a_time_that_is_too_short_or_too_long() -> None:
    async with serving() as server:
        for ttl, expected in ((0, dns.MIN_TTL_S), (10**6, dns.MAX_TTL_S)):
            server.knows("pay.example", "192.0.2.1", ttl=ttl)
            assert (await Resolver([server.address]).resolve("pay.example")).ttl_s == expected


@LOOP
async def test_an_answer_that_is_too_long_for_udp() -> None:
    async with serving() as server:
        server.truncates = True
        server.knows("pay.example", "192.0.2.1")
        assert (await Resolver([server.address]).resolve("pay.example")).addresses == ("192.0.2.1",)
        assert len(server.asked) == 2


@LOOP
async def test_a_server_that_does_not_answer_is_left_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "TIMEOUT_S", 0.05)
    async with serving() as mute, serving() as good:
        mute.is_mute = True
        good.knows("pay.example", "192.0.2.1")
        assert (await Resolver([mute.address, good.address]).resolve("pay.example")).addresses == ("192.0.2.1",)
        assert len(mute.asked) == dns.ATTEMPTS
        with pytest.raises(NotResolved, match=r"name server 127\.0\.0\.1: no answer"):
            await Resolver([mute.address]).resolve("pay.example")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere.example", "there is no name nowhere.example"),
        ("empty.example", "empty.example has no address"),
        ("a..b", r"a\.\.b is no name of a host"),
        ("x" * 64, "is no name of a host"),
        ("ü.example", "is no name of a host"),
    ],
)
@LOOP
async def test_a_name_without_an_address(name: str, why: str) -> None:
    async with serving() as server:
        server.zone["empty.example", A] = []
        with pytest.raises(NotResolved, match=why):
            await Resolver([server.address]).resolve(name)


@LOOP
async def test_this_machine_is_known_without_a_server() -> None:
    async with serving() as server:
        assert (await Resolver([server.address]).resolve("localhost")).addresses == ("127.0.0.1",)
        assert not server.asked


def test_name_servers_of_a_file() -> None:
    text = "# comment\nsearch a b\nnameserver 192.0.2.1\nnameserver\n nameserver ::1\nnameserver 1\nnameserver 2\n"
    assert dns.servers(text) == [("192.0.2.1", 53), ("::1", 53), ("1", 53)]
    assert Path("/etc/resolv.conf").exists() or dns.configured() == []


@pytest.mark.parametrize("what", ["id", "name", "kind", "code", "half"])
def test_an_answer_to_something_else_is_not_believed(what: str) -> None:
    server = NameServer(1)
    server.knows("pay.example", "192.0.2.1")
    good = server.answer(dns.query(7, "pay.example", A), may_truncate=False)
    assert good is not None and dns.answer(good, 7, "pay.example", A).addresses == ("192.0.2.1",)
    asked = {"id": (8, "pay.example", A), "name": (7, "bad.example", A), "kind": (7, "pay.example", AAAA)}
    number, name, kind = asked.get(what, (7, "pay.example", A))
    if what == "code":
        good = good[:2] + struct.pack("!H", 0x8182) + good[4:]
    with pytest.raises(Malformed):
        dns.answer(good[: -2 if what == "half" else None], number, name, kind)


@given(st.binary(max_size=120), st.integers(0, 4))
def test_no_bytes_whatever_break_it(tail: bytes, answers: int) -> None:
    head = dns.query(7, "a.b", A)
    data = head[:2] + struct.pack("!5H", 0x8180, 1, answers, 0, 0) + head[12:] + tail
    try:
        found = dns.answer(data, 7, "a.b", A)
    except (Malformed, NotResolved):
        return
    assert len(found.addresses) <= answers
