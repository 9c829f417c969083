"""Rings and tables: what hashing must promise, and entries that were read off Envoy (more in tests/differential)."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy import hashing

shares = st.lists(st.integers(min_value=1, max_value=9), min_size=1, max_size=8).map(
    lambda weights: [(f"10.0.0.{number}:80".encode(), weight / sum(weights)) for number, weight in enumerate(weights)]
)
keys = st.integers(min_value=0, max_value=2**64 - 1)


@given(shares, st.integers(min_value=1, max_value=300), keys, st.integers(min_value=0, max_value=3))
def test_a_key_goes_to_the_first_entry_that_is_not_below_it(
    shares: list[hashing.Share], least: int, key: int, attempt: int
) -> None:
    """The model looks at every entry, where the ring is searched by halving."""
    hashes, hosts = hashing.ring(shares, least, 1000)
    above = [place for place, known in enumerate(hashes) if known >= key]
    place = (above[0] if above else 0) + attempt
    assert hashing.on_ring(hashes, hosts, key, attempt) == hosts[place % len(hosts)]


@given(shares, st.integers(min_value=1, max_value=300), st.integers(min_value=300, max_value=600))
def test_a_host_has_places_by_its_weight(shares: list[hashing.Share], least: int, most: int) -> None:
    hashes, hosts = hashing.ring(shares, least, most)
    assert hashes == sorted(hashes)
    assert min(least, most) <= len(hashes) <= most + 1, "one more by rounding, as in Envoy"
    seen = Counter(hosts)
    for number, (_, share) in enumerate(shares):
        assert abs(seen[number] - share * len(hashes)) <= 1


@given(shares, st.sampled_from([11, 251, 1009]))
def test_a_table_is_full_and_each_host_has_its_part(shares: list[hashing.Share], size: int) -> None:
    table = hashing.maglev(shares, size)
    assert len(table) == size and set(table) <= set(range(len(shares)))
    seen = Counter(table)
    for number, (_, share) in enumerate(shares):
        assert abs(seen[number] - share * size) <= 1 + len(shares) * share


@given(st.integers(min_value=2, max_value=8), st.randoms(use_true_random=False))
def test_a_table_does_not_depend_on_the_order_of_its_hosts(count: int, chance: object) -> None:
    names = [f"10.0.0.{number}:80".encode() for number in range(count)]
    mixed = names[::-1]
    one = hashing.maglev([(name, 1 / count) for name in names], 251)
    other = hashing.maglev([(name, 1 / count) for name in mixed], 251)
    assert [names[number] for number in one] == [mixed[number] for number in other]


@pytest.mark.parametrize("count", [2, 10])
def test_few_keys_move_when_a_host_leaves(count: int) -> None:
    names = [f"10.0.0.{number}:80".encode() for number in range(count)]
    whole = [(name, 1 / count) for name in names]
    less = [(name, 1 / (count - 1)) for name in names[:-1]]
    rings = hashing.ring(whole, 1024, 2**20), hashing.ring(less, 1024, 2**20)
    picks = [[hashing.on_ring(*ring, hashing.text_key([b"%d" % key]), 0) for key in range(2000)] for ring in rings]
    moved = sum(one != other for one, other in zip(*picks, strict=True))
    assert moved < 2000 * (1 / count + 0.1), "those of the host that left, and few others"
    tables = hashing.maglev(whole, 65_537), hashing.maglev(less, 65_537)
    moved = sum(one != other for one, other in zip(*tables, strict=True))
    assert moved < 65_537 * (1 / count + 0.1)


def test_entries_are_those_of_envoy() -> None:
    hashes, hosts = hashing.ring([(b"127.0.0.1:80", 0.5), (b"127.0.0.1:81", 0.5)], 4, 8)
    expected = sorted(
        (hashing.text_key([b"127.0.0.1:8%d_%d" % (host, turn)]), host) for host in range(2) for turn in range(2)
    )
    assert list(zip(hashes, hosts, strict=True)) == expected


def test_the_parts_of_a_key_do_not_cancel_out() -> None:
    assert hashing.combine(hashing.combine(None, 7), 7) == 7 * 2 ^ 7
    assert hashing.combine(1 << 63, 0) == 1, "what leaves at the top comes back"
    assert hashing.combine(None, 7) == 7


def test_several_values_are_hashed_one_on_top_of_the_other() -> None:
    assert hashing.text_key([b"abc"]) == 4952883123889572249  # xxHash64, seed 0
    assert hashing.text_key([b"a", b"b"]) != hashing.text_key([b"b", b"a"])
    assert hashing.text_key([b"a", b"b"]) != hashing.text_key([b"ab"])


def test_a_weight_is_a_part_of_the_whole() -> None:
    weights = [Fraction(1, 4), Fraction(3, 4)]
    table = hashing.maglev([(b"a", float(weights[0])), (b"b", float(weights[1]))], 1009)
    assert abs(table.count(1) - 757) <= 2
