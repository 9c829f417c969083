"""What the shoppers saw, as lines of JSON: all so far, and since the line before.

{"t_s": 2.0, "final": false, "due": 80, "skipped": 0, "in_flight": 1, "calls": 79, "outcomes": {"OK": 79},
 "latency_ms": {"p50": 6.1, "p95": 9.8, "p99": 14.0}, "spread": {"v1/warehouse-a": 40, "v2/warehouse-c": 39},
 "repeated_calls": 0, "copies": 155, "amount_cents": 353000, "last": {"calls": 40, "outcomes": …, "latency_ms": …, "spread": …}}
"""

import json
from collections import Counter

from apps.bookstore.shoppers.latency import Latencies
from proto.bookstore.v1 import orders_pb2


class _Seen:
    """Of finished calls."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.latencies = Latencies()
        self.spread: Counter[str] = Counter()

    def add(self, outcome: str, latency_s: float, order: orders_pb2.Order | None) -> None:
        self.outcomes[outcome] += 1
        self.latencies.add(latency_s * 1000)
        if order is not None:
            self.spread[f"{order.warehouse_version}/{order.warehouse_instance}"] += 1

    def summary(self) -> dict[str, object]:
        return {
            "calls": self.outcomes.total(),
            "outcomes": dict(sorted(self.outcomes.items())),
            "latency_ms": self.latencies.summary(),
            "spread": dict(sorted(self.spread.items())),
        }


class Tally:
    """Counts purchases from the moment they are due to their end."""

    def __init__(self) -> None:
        self.due = 0
        self.skipped = 0
        """Due while as many were in flight as there may be: never sent."""
        self.in_flight = 0
        self._all = _Seen()
        self._last = _Seen()
        self._repeated_calls = 0
        self._copies = 0
        self._amount_cents = 0

    def sent(self) -> None:
        """A purchase is on its way."""
        self.in_flight += 1

    def done(self, outcome: str, latency_s: float, order: orders_pb2.Order | None) -> None:
        """A purchase was answered: name of the status, seconds since it was due, the order if OK."""
        self.in_flight -= 1
        for seen in (self._all, self._last):
            seen.add(outcome, latency_s, order)
        if order is not None:
            self._repeated_calls += order.repeated_calls
            self._copies += order.copies
            self._amount_cents += order.amount_cents

    def line(self, elapsed_s: float, *, is_final: bool = False) -> str:
        """One line of JSON; `last` in the next one begins here."""
        line = {
            "t_s": round(elapsed_s, 2),
            "final": is_final,
            "due": self.due,
            "skipped": self.skipped,
            "in_flight": self.in_flight,
            **self._all.summary(),
            "repeated_calls": self._repeated_calls,
            "copies": self._copies,
            "amount_cents": self._amount_cents,
            "last": self._last.summary(),
        }
        self._last = _Seen()
        return json.dumps(line, separators=(",", ":"))
