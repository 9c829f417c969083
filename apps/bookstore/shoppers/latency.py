"""Latencies counted in buckets, each 2 % wider than the one before: of bounded size, however long it runs."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Final

_WIDTH: Final = math.log(1.02)
_LEAST_MS: Final = 0.01


class Latencies:
    """Quantiles are right to 1 %."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0

    def add(self, latency_ms: float) -> None:
        """Count one."""
        self._buckets[round(math.log(max(latency_ms, _LEAST_MS) / _LEAST_MS) / _WIDTH)] += 1
        self._count += 1

    def quantile(self, share: float) -> float:
        """So many milliseconds were enough for this share of the calls; 0 without any."""
        rank = max(1, math.ceil(share * self._count))
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                return _LEAST_MS * math.exp(bucket * _WIDTH)
        return 0.0

    def summary(self) -> Mapping[str, float]:
        """p50, p95 and p99."""
        return {f"p{percent}": round(self.quantile(percent / 100), 2) for percent in (50, 95, 99)}
