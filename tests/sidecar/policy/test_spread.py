"""From all hosts of a cluster to one: what is not usable is left out, and what is drawn by chance keeps its shares (by chi-square)."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.balance import ANY, SlowStart, Wish
from sidecar.policy.balancing import Balance, Balancing, Selector, Subsetting, ZoneAware
from sidecar.policy.hosts import Group, Health
from sidecar.policy.priority import Census
from sidecar.policy.spread import home_of, spread
from sidecar.policy.subset import Subsets
from sidecar.policy.zones import Home
from tests.differential.compare import CHI_SQUARE_LIMIT, chi_square
from tests.sidecar.policy.hosts import Host, level

healths = st.sampled_from([Health.HEALTHY, Health.HEALTHY, Health.DEGRADED, Health.UNHEALTHY, Health.LEAVING])
hosts = st.builds(
    Host, st.uuids().map(str), st.integers(min_value=1, max_value=5), health=healths, since=st.sampled_from([0.0, 90.0])
)
clusters = st.lists(st.lists(st.lists(hosts, max_size=4), min_size=1, max_size=3), min_size=1, max_size=3)


@given(
    clusters,
    st.sampled_from(Balance),
    st.booleans(),
    st.sampled_from([0.0, 50.0]),
    st.sampled_from([None, SlowStart(60.0)]),
    st.integers(),
)
def test_a_usable_host_is_found_if_there_is_one(
    tree: list[list[list[Host]]],
    policy: Balance,
    is_weighted: bool,
    panic: float,
    slow_start: SlowStart | None,
    seed: int,
) -> None:
    levels = [
        tuple(Group(("", str(place), ""), place, tuple(members)) for place, members in enumerate(each)) for each in tree
    ]
    how = Balancing(
        policy,
        panic_threshold=panic,
        is_locality_weighted=is_weighted,
        slow_start=slow_start,
        min_ring_size=8,
        table_size=251,
    )
    everybody = [host for each in tree for members in each for host in members]
    balancer = spread(levels, how, Random(seed), 100.0)
    chance = Random(seed)
    picks = [balancer.pick(Wish(chance.getrandbits(64)), 0, 100.0) for _ in range(40)]
    usable = (Health.HEALTHY,) if how.is_hashed else (Health.HEALTHY, Health.DEGRADED)
    if not panic:
        assert all(pick is None or pick.health in usable for pick in picks)
    if any(host.health is Health.HEALTHY for host in everybody) and not how.is_hashed and not is_weighted:
        assert all(picks)
    if not everybody:
        assert not any(picks)


def test_one_healthy_level_costs_nothing_per_call() -> None:
    """The balancer of a usual cluster is the algorithm itself."""
    balancer = spread([level(Host("a"), Host("b"))], Balancing(), Random(1), 0.0)
    assert type(balancer).__name__ == "RoundRobin"


def seen(balancer: object, calls: int = 4000, wish: Wish = ANY, now: float = 0.0) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(calls):
        pick = balancer.pick(wish, 0, now)  # type: ignore[attr-defined]
        found[pick.name if pick else "nobody"] += 1
    return found


def test_a_new_host_gets_its_share_little_by_little() -> None:
    old, new = Host("old"), Host("new", since=100.0)
    how = Balancing(slow_start=SlowStart(60.0, least=0.1))
    balancer = spread([level(old, new)], how, Random(1), 100.0)
    assert abs(seen(balancer, 1100, now=100.0)["new"] - 100) <= 10, "a tenth of its weight at first"
    assert abs(seen(balancer, 1500, now=130.0)["new"] - 500) <= 15, "half of it at half time"
    assert abs(seen(balancer, 1000, now=160.0)["new"] - 500) <= 15, "all of it in the end"


def test_slow_start_can_be_aggressive() -> None:
    assert SlowStart(100.0, aggression=2.0).factor(25.0) == 0.5
    assert SlowStart(100.0).factor(25.0) == 0.25
    assert SlowStart(100.0, least=0.3).factor(0.0) == 0.3
    assert SlowStart(100.0).factor(100.0) == 1.0


def test_a_new_host_takes_few_calls_by_fewest_calls_too() -> None:
    old, new = Host("old"), Host("new", since=100.0)
    how = Balancing(Balance.LEAST_REQUEST, slow_start=SlowStart(60.0))
    assert abs(seen(spread([level(old, new)], how, Random(1), 100.0), 1100, now=100.0)["new"] - 100) <= 10


@pytest.mark.parametrize("policy", list(Balance))
def test_hosts_that_are_not_healthy_get_nothing(policy: Balance) -> None:
    hosts = [Host("good"), Host("good too"), Host("ill", health=Health.UNHEALTHY), Host("gone", health=Health.LEAVING)]
    found = seen(spread([level(*hosts)], Balancing(policy, table_size=251), Random(1), 0.0), 200)
    assert set(found) <= {"good", "good too"}


def test_the_own_zone_is_preferred() -> None:
    here = Group(("", "here", ""), 0, (Host("a"), Host("b"), Host("c")))
    there = Group(("", "there", ""), 0, (Host("d"), Host("e"), Host("f")))
    home = home_of([(replace(here, hosts=(Host("x"),)), replace(there, hosts=(Host("y"),)))], here.locality)
    found = seen(spread([(there, here)], Balancing(Balance.RANDOM), Random(1), 0.0, home=home))
    assert chi_square(found, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}) < CHI_SQUARE_LIMIT[2]


def test_a_home_in_a_panic_says_nothing_of_zones() -> None:
    here = Group(("", "here", ""), 0, (Host("a"), Host("b"), Host("c")))
    there = Group(("", "there", ""), 0, (Host("d"), Host("e"), Host("f")))
    home = Home(here.locality, ((here.locality, 1), (there.locality, 1)), Census(9, 2), True, 2)
    found = seen(spread([(there, here)], Balancing(Balance.RANDOM), Random(1), 0.0, home=home))
    assert chi_square(found, dict.fromkeys("abcdef", 1 / 6)) < CHI_SQUARE_LIMIT[5]
    strict = Balancing(Balance.RANDOM, zone_aware=ZoneAware(fails_in_panic=True))
    assert set(seen(spread([(there, here)], strict, Random(1), 0.0, home=home), 10)) == {"nobody"}


# -- subsets ------------------------------------------------------------------------------------------

KEYS = ("stage", "version")
labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(["1", "2", ("1", "2")]))


@given(
    st.lists(labels, max_size=6),
    labels.map(lambda each: {key: value for key, value in each.items() if isinstance(value, str)}),
    st.sets(st.sampled_from([("stage",), ("version",), KEYS]), min_size=1),
    st.booleans(),
)
def test_a_subset_holds_whoever_has_its_labels(
    given_labels: list[dict[str, object]], wanted: dict[str, object], selectors: set[tuple[str, ...]], as_any: bool
) -> None:
    """The model asks every host."""
    members = [Host(str(number), labels=each) for number, each in enumerate(given_labels)]
    how = Subsetting(tuple(map(Selector, selectors)), takes_lists_as_any=as_any)
    balancer = Subsets([level(*members)], how, lambda levels, now: spread(levels, Balancing(), Random(1), now))
    match = tuple(sorted(wanted.items()))

    def has(host: Host, key: str, value: object) -> bool:
        known = host.labels.get(key)
        return value in known if as_any and isinstance(known, tuple) else known == value

    expected = {host.name for host in members if all(has(host, *label) for label in match)}
    if tuple(sorted(wanted)) not in selectors:
        expected = set()
    found = seen(balancer, 30, Wish(match=match))
    assert set(found) == (expected or {"nobody"})


def test_subsets_take_turns_each_by_itself() -> None:
    hosts = [Host("a", labels={"v": "1"}), Host("b", labels={"v": "1"}), Host("c", labels={"v": "2"})]
    balancer = Subsets(
        [level(*hosts)],
        Subsetting((Selector(("v",)),)),
        lambda levels, now: spread(levels, Balancing(), Random(1), now),
    )
    for _ in range(5):
        pair = {balancer.pick(Wish(match=(("v", "1"),))), balancer.pick(Wish(match=(("v", "1"),)))}
        assert {pick.name for pick in pair if pick} == {"a", "b"}
        other = balancer.pick(Wish(match=(("v", "2"),)))
        assert other is not None and other.name == "c"
