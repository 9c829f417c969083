"""Which endpoints are ejected for what they answered, and for how long (Envoy: cluster.v3.OutlierDetection).

A `Detector` watches the endpoints of one cluster, a `Record` belongs to one of them. Errors in a row eject at once; shares of errors are looked at,
and endpoints return, when `sweep` is called: once an interval. `now` and chance are parameters; nothing here waits.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from math import sqrt
from random import Random
from typing import Final

SERVER_ERROR: Final = 500
GATEWAY_ERRORS: Final = frozenset((502, 503, 504))
HTTP_OF_GRPC: Final = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
"""By gRPC status: the HTTP status that it counts as."""


class Why(Enum):
    """What ejects, by Envoy's names."""

    CONSECUTIVE_5XX = "consecutive_5xx"
    CONSECUTIVE_GATEWAY_FAILURE = "consecutive_gateway_failure"
    CONSECUTIVE_LOCAL_ORIGIN_FAILURE = "consecutive_local_origin_failure"
    SUCCESS_RATE = "success_rate"
    SUCCESS_RATE_LOCAL_ORIGIN = "success_rate_local_origin"
    FAILURE_PERCENTAGE = "failure_percentage"
    FAILURE_PERCENTAGE_LOCAL_ORIGIN = "failure_percentage_local_origin"


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """When an endpoint is taken out of balancing (Envoy: cluster.v3.OutlierDetection)."""

    consecutive_5xx: int = 5
    """Server errors in a row, HTTP 5xx or gRPC statuses that mean the same."""
    consecutive_gateway_failure: int = 5
    """Of 502, 503, 504 in a row."""
    interval_s: float = 10.0
    """How often shares are looked at, and endpoints return."""
    base_ejection_s: float = 30.0
    """The first ejection; the n-th in a row lasts n times as long, up to `max_ejection_s`."""
    max_ejection_s: float = 300.0
    max_ejection_jitter_s: float = 0.0
    """Each ejection is longer by chance, up to this."""
    max_ejection_percent: int = 10
    """Of the cluster's endpoints: no more are ejected at once."""
    always_ejects_one: bool = False
    """One may be, whatever `max_ejection_percent` says."""
    enforcing_consecutive_5xx: int = 100
    """Percent of detections that eject; with 0 they are only counted."""
    enforcing_consecutive_gateway_failure: int = 0
    enforcing_success_rate: int = 100
    success_rate_minimum_hosts: int = 5
    """With fewer endpoints that had enough calls, success rates are not compared."""
    success_rate_request_volume: int = 100
    """Calls in an interval that are enough."""
    success_rate_stdev_factor: int = 1900
    """Thousandths of a standard deviation below the mean that eject."""
    failure_percentage_threshold: int = 85
    enforcing_failure_percentage: int = 0
    failure_percentage_minimum_hosts: int = 5
    failure_percentage_request_volume: int = 50
    splits_local_origin: bool = False
    """What went wrong on this side (connecting, time-outs, resets) is counted apart from what the endpoint answered."""
    consecutive_local_origin_failure: int = 5
    enforcing_consecutive_local_origin_failure: int = 100
    enforcing_local_origin_success_rate: int = 100
    enforcing_failure_percentage_local_origin: int = 0
    uneject_on_check: bool = True
    """A passed active health check ends an ejection."""


class Window:
    """Calls of an interval, of one origin."""

    __slots__ = ("good", "in_a_row", "total")

    def __init__(self) -> None:
        self.total = 0
        self.good = 0
        self.in_a_row = 0
        """Failures since the last success."""

    def take(self) -> tuple[int, int]:
        """(calls, successes) since this was asked last."""
        found = self.total, self.good
        self.total = self.good = 0
        return found


class Record:
    """What is known of one endpoint."""

    __slots__ = (
        "_detector",
        "answers",
        "ejected_at",
        "gateway_in_a_row",
        "is_ejected",
        "jitter_s",
        "local",
        "success_rate",
        "times",
    )

    def __init__(self, detector: "Detector") -> None:
        self._detector = detector
        self.answers = Window()
        """What the endpoint answered; without a split also what went wrong on this side."""
        self.local = Window()
        """What went wrong on this side, where the two are split."""
        self.gateway_in_a_row = 0
        self.is_ejected = False
        self.ejected_at = 0.0
        self.jitter_s = 0.0
        self.times = 0
        """Ejections that make the next one longer; each interval of good conduct takes one away."""
        self.success_rate = -1.0
        """Percent, in the last interval; -1 if there were too few calls."""

    def on_code(self, code: int, now: float) -> bool:
        """The endpoint answered with this HTTP status, or one that means the same; True if it is ejected now."""
        answers = self.answers
        answers.total += 1
        if code < SERVER_ERROR:
            answers.good += 1
            answers.in_a_row = 0
            self.gateway_in_a_row = 0
            return False
        config = self._detector.config
        is_ejected = False
        if code in GATEWAY_ERRORS:
            self.gateway_in_a_row += 1
            if self.gateway_in_a_row == config.consecutive_gateway_failure:
                is_ejected = self._detector.detect(self, Why.CONSECUTIVE_GATEWAY_FAILURE, now)
                self.gateway_in_a_row = 0
        else:
            self.gateway_in_a_row = 0
        answers.in_a_row += 1
        if answers.in_a_row == config.consecutive_5xx:
            is_ejected = self._detector.detect(self, Why.CONSECUTIVE_5XX, now) or is_ejected
            answers.in_a_row = 0
        return is_ejected

    def on_failure(self, code: int, now: float) -> bool:
        """Something went wrong on this side, which counts as this HTTP status where the two are not split; True if it is ejected now."""
        config = self._detector.config
        if not config.splits_local_origin:
            return self.on_code(code, now)
        local = self.local
        local.total += 1
        local.in_a_row += 1
        if local.in_a_row == config.consecutive_local_origin_failure:
            local.in_a_row = 0
            return self._detector.detect(self, Why.CONSECUTIVE_LOCAL_ORIGIN_FAILURE, now)
        return False

    def on_reached(self) -> None:
        """The endpoint was reached: there was a connection for the call."""
        if self._detector.config.splits_local_origin:
            self.local.total += 1
            self.local.good += 1
            self.local.in_a_row = 0

    def forgive(self) -> None:
        """Count from nothing what comes in a row."""
        self.answers.in_a_row = 0
        self.gateway_in_a_row = 0
        self.local.in_a_row = 0


class Detector:
    """The records of a cluster's endpoints, and who of them is ejected."""

    def __init__(self, config: OutlierDetection, chance: Random) -> None:
        self.config = config
        self.records: dict[Record, None] = {}
        self.ejected = 0
        """Endpoints that are ejected now."""
        self.detections: dict[tuple[Why, bool], int] = {}
        """By what detected, and whether it ejected."""
        self.overflows = 0
        """Ejections that `max_ejection_percent` did not allow."""
        self._chance = chance
        self._enforced: dict[Why, int] = {
            Why.CONSECUTIVE_5XX: config.enforcing_consecutive_5xx,
            Why.CONSECUTIVE_GATEWAY_FAILURE: config.enforcing_consecutive_gateway_failure,
            Why.CONSECUTIVE_LOCAL_ORIGIN_FAILURE: config.enforcing_consecutive_local_origin_failure,
            Why.SUCCESS_RATE: config.enforcing_success_rate,
            Why.SUCCESS_RATE_LOCAL_ORIGIN: config.enforcing_local_origin_success_rate,
            Why.FAILURE_PERCENTAGE: config.enforcing_failure_percentage,
            Why.FAILURE_PERCENTAGE_LOCAL_ORIGIN: config.enforcing_failure_percentage_local_origin,
        }

    def add(self) -> Record:
        """The record of one more endpoint."""
        record = Record(self)
        self.records[record] = None
        return record

    def remove(self, record: Record) -> None:
        """The endpoint is gone."""
        if record in self.records:
            del self.records[record]
            if record.is_ejected:
                self.ejected -= 1

    def detect(self, record: Record, why: Why, now: float) -> bool:
        """A detector found fault with an endpoint; True if that ejects it."""
        if record.is_ejected:
            return False
        config = self.config
        share = 100.0 * (self.ejected + 1) / max(1, len(self.records))
        if share > config.max_ejection_percent and not (config.always_ejects_one and self.ejected == 0):
            self.overflows += 1
            return False
        enforced = self._enforced[why]
        is_enforced = enforced >= 100 or (enforced > 0 and self._chance.random() * 100 < enforced)
        self.detections[why, is_enforced] = self.detections.get((why, is_enforced), 0) + 1
        if not is_enforced:
            return False
        self.ejected += 1
        record.is_ejected = True
        record.ejected_at = now
        record.jitter_s = self._chance.random() * config.max_ejection_jitter_s
        if record.times * config.base_ejection_s < config.max_ejection_s + config.base_ejection_s:
            record.times += 1
        return True

    def release(self, record: Record) -> bool:
        """Let an endpoint take calls again; False if it did already."""
        if not record.is_ejected:
            return False
        record.is_ejected = False
        self.ejected -= 1
        record.forgive()
        return True

    def sweep(self, now: float) -> bool:
        """An interval is over: let return whose time is served, and compare the shares; True if anybody was ejected or returned."""
        config = self.config
        has_changed = False
        answers: list[tuple[Record, int, float]] = []
        local: list[tuple[Record, int, float]] = []
        for record in self.records:
            if not record.is_ejected:
                record.times = max(0, record.times - 1)
            elif now - record.ejected_at >= self.sentence_s(record):
                has_changed = self.release(record) or has_changed
            record.success_rate = -1.0
            for window, found in ((record.answers, answers), (record.local, local)):
                total, good = window.take()
                if total and not record.is_ejected:
                    found.append((record, total, 100.0 * good / total))
        has_changed = self._compare(answers, Why.SUCCESS_RATE, Why.FAILURE_PERCENTAGE, now) or has_changed
        if config.splits_local_origin:
            names = Why.SUCCESS_RATE_LOCAL_ORIGIN, Why.FAILURE_PERCENTAGE_LOCAL_ORIGIN
            has_changed = self._compare(local, *names, now) or has_changed
        return has_changed

    def sentence_s(self, record: Record) -> float:
        """How long an ejected endpoint is ejected."""
        return min(record.times * self.config.base_ejection_s, self.config.max_ejection_s) + record.jitter_s

    def _compare(self, shares: "list[tuple[Record, int, float]]", rate: Why, percentage: Why, now: float) -> bool:
        """Eject whose success rate is far below the others', or whose share of failures is too large."""
        config = self.config
        if len(self.records) < min(config.success_rate_minimum_hosts, config.failure_percentage_minimum_hosts):
            return False
        has_changed = False
        rated = [item for item in shares if item[1] >= config.success_rate_request_volume]
        counted = [item for item in shares if item[1] >= config.failure_percentage_request_volume]
        for record, total, success in shares:
            if total >= min(config.success_rate_request_volume, config.failure_percentage_request_volume):
                record.success_rate = success
        if rated and len(rated) >= config.success_rate_minimum_hosts:
            least = threshold((success for _, _, success in rated), config.success_rate_stdev_factor / 1000.0)
            for record, _, success in rated:
                if success < least:
                    has_changed = self.detect(record, rate, now) or has_changed
        if counted and len(counted) >= config.failure_percentage_minimum_hosts:
            for record, _, success in counted:
                if 100.0 - success >= config.failure_percentage_threshold:
                    has_changed = self.detect(record, percentage, now) or has_changed
        return has_changed


def threshold(rates: Iterable[float], factor: float) -> float:
    """The success rate below which an endpoint is an outlier: so many standard deviations under the mean."""
    values = list(rates)
    mean = sum(values) / len(values)
    return mean - factor * sqrt(sum((value - mean) ** 2 for value in values) / len(values))
