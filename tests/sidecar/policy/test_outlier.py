"""Outlier detection against a slow model that keeps every answer, and by hand where the model would only repeat the rule."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.outlier import Detector, OutlierDetection, Record, Why

HOSTS = 4
CODES = (200, 404, 500, 503)
EAGER = OutlierDetection(
    consecutive_5xx=3,
    consecutive_gateway_failure=2,
    enforcing_consecutive_gateway_failure=100,
    interval_s=1.0,
    base_ejection_s=2.0,
    max_ejection_s=5.0,
    max_ejection_percent=50,
    success_rate_minimum_hosts=3,
    success_rate_request_volume=4,
    success_rate_stdev_factor=1000,
    failure_percentage_minimum_hosts=3,
    failure_percentage_request_volume=4,
    failure_percentage_threshold=75,
    enforcing_failure_percentage=100,
)


@dataclass
class SlowHost:
    """Everything that ever happened to one endpoint."""

    codes: list[int] = field(default_factory=list)
    """Since it last returned, or was ejected for errors in a row."""
    gateway_codes: list[int] = field(default_factory=list)
    interval: list[int] = field(default_factory=list)
    ejected_at: float | None = None
    times: int = 0


class SlowModel:
    """The rules of cluster.v3.OutlierDetection, said as plainly as can be."""

    def __init__(self, config: OutlierDetection) -> None:
        self.config = config
        self.hosts = [SlowHost() for _ in range(HOSTS)]

    def answer(self, number: int, code: int, now: float) -> None:
        host = self.hosts[number]
        host.interval.append(code)
        host.codes.append(code)
        host.gateway_codes.append(code)
        if self.ends_with(host.gateway_codes, lambda code: code == 503, self.config.consecutive_gateway_failure):
            host.gateway_codes.clear()
            self.eject(host, now)
        if self.ends_with(host.codes, lambda code: code >= 500, self.config.consecutive_5xx):
            host.codes.clear()
            self.eject(host, now)

    @staticmethod
    def ends_with(codes: list[int], is_bad: Callable[[int], bool], count: int) -> bool:
        return len(codes) >= count and all(is_bad(code) for code in codes[-count:])

    def eject(self, host: SlowHost, now: float) -> None:
        ejected = sum(other.ejected_at is not None for other in self.hosts)
        if host.ejected_at is not None or (ejected + 1) / HOSTS * 100 > self.config.max_ejection_percent:
            return
        host.ejected_at = now
        if host.times * self.config.base_ejection_s < self.config.max_ejection_s + self.config.base_ejection_s:
            host.times += 1

    def sweep(self, now: float) -> None:
        for host in self.hosts:
            if host.ejected_at is None:
                host.times = max(0, host.times - 1)
            elif now >= host.ejected_at + min(host.times * self.config.base_ejection_s, self.config.max_ejection_s):
                host.ejected_at = None
                host.codes.clear()
                host.gateway_codes.clear()
        shares = {
            number: 100 * sum(code < 500 for code in host.interval) / len(host.interval)
            for number, host in enumerate(self.hosts)
            if host.ejected_at is None and len(host.interval) >= 4
        }
        for host in self.hosts:
            host.interval.clear()
        if len(shares) >= 3:
            least = fmean(shares.values()) - pstdev(shares.values())
            outliers = [number for number, share in shares.items() if share < least - 1e-9]
            outliers += [number for number, share in shares.items() if 100 - share >= 75]
            for number in outliers:
                self.eject(self.hosts[number], now)


happenings = st.lists(
    st.one_of(
        st.tuples(st.integers(0, HOSTS - 1), st.sampled_from(CODES)),
        st.tuples(st.integers(0, HOSTS - 1), st.lists(st.sampled_from(CODES), min_size=4, max_size=8)),
        st.just("sweep"),
    ),
    max_size=60,
)


@given(happenings)
def test_who_is_ejected_is_who_the_rules_eject(happenings: list[object]) -> None:
    detector = Detector(EAGER, Random(1))
    records = [detector.add() for _ in range(HOSTS)]
    model = SlowModel(EAGER)
    now = 0.0
    for happening in happenings:
        if happening == "sweep":
            now += EAGER.interval_s
            detector.sweep(now)
            model.sweep(now)
        else:
            assert isinstance(happening, tuple)
            number, codes = happening
            for code in codes if isinstance(codes, list) else [codes]:
                records[number].on_code(code, now)
                model.answer(number, code, now)
        ejected = [record.is_ejected for record in records]
        assert ejected == [host.ejected_at is not None for host in model.hosts]
        assert detector.ejected == sum(ejected) <= HOSTS // 2


def alone(config: OutlierDetection) -> tuple[Detector, Record]:
    detector = Detector(replace(config, max_ejection_percent=100), Random(1))
    return detector, detector.add()


def eject(record: Record, now: float) -> None:
    while not record.is_ejected:
        record.on_code(500, now)


def returns_at(detector: Detector, record: Record, start: float) -> float:
    """The first sweep, one each second, that lets it return."""
    now = start
    while record.is_ejected:
        now += 1.0
        detector.sweep(now)
    return now


def test_each_ejection_lasts_longer_up_to_the_longest() -> None:
    detector, record = alone(replace(EAGER, base_ejection_s=10.0, max_ejection_s=25.0))
    lengths, now = [], 0.0
    for _ in range(5):
        eject(record, now)
        lengths.append(returns_at(detector, record, now) - now)
        now += lengths[-1]
    assert lengths == [10.0, 20.0, 25.0, 25.0, 25.0]


def test_good_conduct_makes_the_next_ejection_shorter() -> None:
    detector, record = alone(replace(EAGER, base_ejection_s=10.0, max_ejection_s=100.0))
    now = 0.0
    for _ in range(3):
        eject(record, now)
        now = returns_at(detector, record, now)
    for _ in range(2):
        now += 1.0
        detector.sweep(now)
    eject(record, now)
    assert returns_at(detector, record, now) - now == 20.0


@given(st.floats(0.0, 5.0), st.integers(0, 2**32))
def test_jitter_only_makes_an_ejection_longer(jitter: float, seed: int) -> None:
    detector = Detector(replace(EAGER, max_ejection_percent=100, max_ejection_jitter_s=jitter), Random(seed))
    record = detector.add()
    eject(record, 0.0)
    assert EAGER.base_ejection_s <= detector.sentence_s(record) <= EAGER.base_ejection_s + jitter


@pytest.mark.parametrize("enforced", [0, 30, 100])
def test_a_share_of_detections_ejects(enforced: int) -> None:
    config = replace(EAGER, enforcing_consecutive_5xx=enforced, max_ejection_percent=100)
    detector = Detector(config, Random(7))
    for _ in range(1000):
        record = detector.add()
        for _ in range(3):
            record.on_code(500, 0.0)
    assert detector.ejected == pytest.approx(10 * enforced, abs=60 if 0 < enforced < 100 else 0)
    counted = {is_enforced: count for (why, is_enforced), count in detector.detections.items()}
    assert sum(counted.values()) == 1000 and counted.get(True, 0) == detector.ejected


def test_one_is_ejected_whatever_the_share_if_that_is_wanted() -> None:
    detector = Detector(replace(EAGER, max_ejection_percent=0, always_ejects_one=True), Random(1))
    first, second = detector.add(), detector.add()
    for record in (first, second):
        for _ in range(3):
            record.on_code(500, 0.0)
    assert first.is_ejected and not second.is_ejected
    assert detector.overflows == 1


def test_what_goes_wrong_here_counts_apart_where_it_is_split() -> None:
    detector, record = alone(replace(EAGER, splits_local_origin=True, consecutive_local_origin_failure=2))
    record.on_failure(503, 0.0)
    record.on_reached()
    assert not record.on_failure(503, 0.0)
    assert record.on_failure(503, 0.0)
    assert list(detector.detections) == [(Why.CONSECUTIVE_LOCAL_ORIGIN_FAILURE, True)]


def test_an_endpoint_that_goes_makes_room_for_another_ejection() -> None:
    detector = Detector(replace(EAGER, max_ejection_percent=50), Random(1))
    first, second, third = detector.add(), detector.add(), detector.add()
    eject(first, 0.0)
    assert not any(second.on_code(500, 0.0) for _ in range(3))
    detector.remove(first)
    assert [second.on_code(500, 0.0) for _ in range(3)] == [False, False, True]
    assert not third.is_ejected
