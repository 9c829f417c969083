"""The decision cache: the same answers as without a cache, and no client can make it large or useless to others."""

from random import Random
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.http2 import headers
from sidecar.http2.fields import Malformed
from sidecar.http2.headers import HeaderError
from sidecar.proxy import decision
from sidecar.proxy.config import HeaderMatch, Route, RouteMatch, RouteTable, VirtualHost
from sidecar.proxy.decision import DecisionCache, Plan, parse_timeout
from sidecar.proxy.route import Router
from sidecar.telemetry.stats import Stats

Fields = list[tuple[bytes, bytes]]

BASE: Final[Fields] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/shop.Orders/Get"),
    (b":authority", b"shop"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
]


def _table() -> RouteTable:
    vip = RouteMatch(prefix=b"/", headers=(HeaderMatch(b"x-tier", exact=b"vip"),))
    slow = RouteMatch(prefix=b"/", headers=(HeaderMatch(b"grpc-timeout", exact=b"7S"),))
    return RouteTable(
        "t",
        (
            VirtualHost(
                "shop",
                ("shop", "store"),
                (
                    Route(vip, (("vip", 1),), name="vip"),
                    Route(slow, (("slow", 1),), name="slow"),
                    Route(RouteMatch(prefix=b"/shop."), (("all", 1),), name="all"),
                ),
            ),
        ),
    )


def cache() -> DecisionCache:
    """A cache whose clusters are not there, so that a decision says which one it would have been."""
    made = DecisionCache(Stats(), Random(1))
    made.reconfigure(Router(_table()), {}, None)
    return made


def verdict(plan: Plan) -> tuple[object, ...]:
    made = plan.decision
    return made.reply, made.is_grpc, made.content_length, headers.decode(plan.block), plan.timeout_s


def request(*more: tuple[bytes, bytes], base: Fields = BASE) -> bytes:
    return headers.encode([*base, *more])


names = st.sampled_from(
    [b"x-tier", b"x-user", b"grpc-timeout", b"x-trace", b"host", b"te", b"content-length", b"Bad", b"upgrade"]
)
values = st.sampled_from([b"vip", b"", b"7S", b"8S", b"trailers", b"12", b"a\nb", b"shop", b"ann"])
extras = st.lists(st.tuples(names, values), max_size=4)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from([b"shop", b"store", b"nobody"]), extras), min_size=1, max_size=8))
def test_a_warm_cache_says_what_an_empty_one_says(calls: list[tuple[bytes, Fields]]) -> None:
    warm, seen = cache(), {}  # type: DecisionCache, dict[int, None]
    for authority, more in calls * 3:
        block = request(*more, base=[*BASE[:3], (b":authority", authority), *BASE[4:]])
        try:
            expected = verdict(cache().plan(block, {}))
        except Malformed:
            with pytest.raises(Malformed):
                warm.plan(block, seen)
            continue
        assert verdict(warm.exact.get(block) or warm.plan(block, seen)) == expected


@given(extras)
def test_what_is_forwarded_is_what_came_but_for_host_and_a_second_te(more: Fields) -> None:
    try:
        plan = cache().plan(request(*more), {})
    except Malformed:
        return
    expected = [field for field in [*BASE, *more] if field[0] != b"host"]
    te = expected.index((b"te", b"trailers"))
    assert headers.decode(plan.block) == [
        field for number, field in enumerate(expected) if field != (b"te", b"trailers") or number == te
    ]


def test_host_becomes_the_authority_where_there_is_none() -> None:
    block = headers.encode([*BASE[:3], *BASE[4:], (b"host", b"shop")])
    assert (b":authority", b"shop") in headers.decode(cache().plan(block, {}).block)
    assert all(name != b"host" for name, _ in headers.decode(cache().plan(block, {}).block))


def test_headers_that_nobody_reads_lead_to_the_same_decision() -> None:
    warm, seen = cache(), {}  # type: DecisionCache, dict[int, None]
    first = warm.plan(request((b"x-trace", b"1"), (b"grpc-timeout", b"8S")), seen)
    second = warm.plan(request((b"x-trace", b"2"), (b"grpc-timeout", b"9S")), seen)
    # Only the table's own route by grpc-timeout keeps these apart; without it they are one.
    plain = DecisionCache(Stats(), Random(1))
    plain.reconfigure(Router(RouteTable("t", ())), {}, None)
    one = plain.plan(request((b"x-trace", b"1"), (b"grpc-timeout", b"8S")), seen)
    other = plain.plan(request((b"x-trace", b"2"), (b"grpc-timeout", b"9S")), seen)
    assert one.decision is other.decision
    assert (one.timeout_s, other.timeout_s) == (8.0, 9.0)
    assert first.decision is not second.decision


def test_a_block_gets_in_when_the_same_connection_sends_it_a_second_time() -> None:
    warm, block = cache(), request()
    one: dict[int, None] = {}
    other: dict[int, None] = {}
    warm.plan(block, one)
    warm.plan(block, other)
    assert block not in warm.exact
    warm.plan(block, one)
    assert block in warm.exact


def test_a_client_whose_blocks_all_differ_gets_nothing_in_and_pushes_nobody_out() -> None:
    warm, block = cache(), request()
    good: dict[int, None] = {}
    warm.plan(block, good)
    warm.plan(block, good)
    bad: dict[int, None] = {}
    for number in range(6_000):
        warm.plan(request((b"x-user", b"%d" % number)), bad)
    assert set(warm.exact) == {block}
    assert len(bad) <= decision.DOORKEEPER


def _sizes(warm: DecisionCache) -> tuple[int, int]:
    """The largest number of entries of any table, and the bytes of all keys."""
    tables: list[list[bytes]] = [list(table) for table in (warm.exact, warm._masked, warm._kinds, warm._checked)]
    return max(len(table) for table in tables), sum(len(key) for table in tables for key in table)


@pytest.mark.parametrize("size", [10, 1_000, 8_000, 30_000])
def test_a_client_that_sends_each_block_twice_cannot_make_the_cache_large(size: int) -> None:
    warm = cache()
    times = min(4_500, 60_000_000 // size // 10)
    for number in range(times):
        path = b"/shop.%d/" % number + b"~" * size
        fields = [*BASE[:2], (b":path", path), *BASE[3:], (b"x-%d" % number, b"v"), (b"x-user", b"%d" % number)]
        seen: dict[int, None] = {}
        block = headers.encode(fields)
        warm.plan(block, seen)
        warm.plan(block, seen)
    entries, bytes_ = _sizes(warm)
    assert entries <= decision.MAX_ENTRIES
    assert bytes_ <= 2 * (decision.MAX_BYTES + decision.MAX_CACHED_BLOCK) + 4 * 1024 * 1024


def test_a_long_block_is_decided_each_time_and_not_kept() -> None:
    warm, seen = cache(), {}  # type: DecisionCache, dict[int, None]
    block = request((b"x-long", b"~" * (decision.MAX_CACHED_BLOCK + 1)))
    plans = [warm.plan(block, seen) for _ in range(3)]
    assert len({id(plan) for plan in plans}) == 3
    assert block not in warm.exact


def test_a_new_configuration_drops_every_decision() -> None:
    warm, seen, block = cache(), {}, request()  # type: DecisionCache, dict[int, None], bytes
    for _ in range(2):
        warm.plan(block, seen)
    before = warm.exact[block]
    warm.reconfigure(Router(RouteTable("empty", ())), {}, None)
    assert block not in warm.exact
    after = warm.plan(block, seen)
    assert before.decision.reply is not None and 'cluster "all"' in before.decision.reply[1]
    assert after.decision.reply is not None and 'no service named "shop"' in after.decision.reply[1]


@pytest.mark.parametrize("name", [b"grpc-timeout", b"x-user", b"host", b"te", b"content-type"])
def test_a_value_that_would_break_a_shared_connection_is_refused_also_when_the_decision_is_known(name: bytes) -> None:
    warm, seen = cache(), {}  # type: DecisionCache, dict[int, None]
    warm.plan(request((name, b"trailers" if name == b"te" else b"1S")), seen)
    with pytest.raises(Malformed):
        warm.plan(request((name, b"1S\r\nx-admin: 1")), seen)


def test_a_block_that_was_refused_is_refused_again() -> None:
    warm, seen = cache(), {}  # type: DecisionCache, dict[int, None]
    for _ in range(3):
        with pytest.raises(Malformed):
            warm.plan(request((b"connection", b"close")), seen)
        with pytest.raises(HeaderError):
            warm.plan(request() + b"\x80", seen)
    assert warm.exact == {}


def test_without_routes_callers_are_told_what_is_missing() -> None:
    made = DecisionCache(Stats(), Random(1))
    made.what_is_missing = "the routes have not come"
    reply = made.plan(request(), {}).decision.reply
    assert reply is not None and reply[1] == "the routes have not come (flag NR)"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"250m", 0.25),
        (b"5u", 5e-6),
        (b"7n", 7e-9),
        (b"0m", 1e-9),
        (b"99999999H", 99_999_999 * 3600.0),
        (b"100000000S", 0.0),
        (b"S", 0.0),
        (b"", 0.0),
        (b"-1S", 0.0),
        (b"1.5S", 0.0),
        (b"1s", 0.0),
        (b" 1S", 0.0),
    ],
)
def test_grpc_timeout_is_read_as_grpc_defines_it(value: bytes, seconds: float) -> None:
    assert parse_timeout(value) == pytest.approx(seconds)
