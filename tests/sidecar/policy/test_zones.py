"""Zone-aware routing: nobody is overloaded, and nothing crosses zones that need not."""

from collections import Counter
from fractions import Fraction
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.priority import Census
from sidecar.policy.zones import Home, zoning

A, B, C = ("", "a", ""), ("", "b", ""), ("", "c", "")


def home(*callers: int, at: tuple[str, str, str] = A) -> Home:
    return Home(
        at, tuple(zip((A, B, C), callers, strict=False)), Census(sum(callers), sum(callers)), True, len(callers)
    )


def test_a_zone_with_room_keeps_its_calls() -> None:
    how = zoning(home(1, 1), [(A, 3), (B, 3)], 6)
    assert how is not None and how.local == 10_000


def test_a_zone_without_room_keeps_what_is_fair() -> None:
    how = zoning(home(2, 1, 1), [(A, 2), (B, 4), (C, 4)], 6)
    assert how is not None
    assert how.local == 4_000
    assert how.others == (0, 1_500, 3_000)


def test_zones_do_not_count_where_they_would_say_nothing() -> None:
    assert zoning(home(1, 1), [(A, 3), (B, 2)], 6) is None, "too few hosts"
    assert zoning(home(1, 1), [(A, 9)], 6) is None, "one zone of hosts"
    assert zoning(home(1), [(A, 3), (B, 3)], 6) is None, "one zone of callers"
    unknown = Home(C, ((A, 1), (B, 1)), Census(2, 2), False, 2)
    assert zoning(unknown, [(A, 3), (B, 3)], 6) is None, "a caller that is in no zone of its service"


counts = st.lists(st.integers(min_value=1, max_value=6), min_size=3, max_size=3)


@given(counts, counts)
def test_all_callers_together_load_every_host_the_same(callers: list[int], hosts: list[int]) -> None:
    """The model: exact shares of all callers, summed over the zones that they are in."""
    places = [A, B, C]
    load = dict.fromkeys(places, Fraction(0))
    for place, count in zip(places, callers, strict=True):
        order = [place, *(other for other in places if other != place)]
        upstream = [(each, hosts[places.index(each)]) for each in order]
        how = zoning(home(*callers, at=place), upstream, 1)
        assert how is not None
        load[place] += Fraction(count * how.local, 10_000)
        if how.local == 10_000:
            continue
        rest = Fraction(count * (10_000 - how.local), 10_000)
        if not how.others[-1]:  # rounding left nothing: any zone
            for each in order:
                load[each] += rest / 3
            continue
        before = 0
        for each, room in zip(order, how.others, strict=True):
            load[each] += rest * Fraction(room - before, how.others[-1])
            before = room
    for place, count in zip(places, hosts, strict=True):
        fair = Fraction(sum(callers) * count, sum(hosts))
        assert abs(load[place] - fair) < Fraction(1, 100) * sum(callers)


def test_what_crosses_goes_by_the_room_that_there_is() -> None:
    how = zoning(home(2, 1, 1), [(A, 2), (B, 4), (C, 4)], 6)
    assert how is not None
    chance = Random(4)
    seen = Counter(how.at(chance.getrandbits(32), chance.getrandbits(32)) for _ in range(20_000))
    assert abs(seen[0] - 8_000) < 500 and abs(seen[1] - 6_000) < 500 and abs(seen[2] - 6_000) < 500
