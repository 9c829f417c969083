"""A token bucket (Envoy: type.v3.TokenBucket, filled continuously as Envoy does since 1.31)."""

from sidecar.policy.limiting.limiter import REFUSED, Limiter


class TokenBucket(Limiter):
    """Holds up to `max_tokens`, gains `tokens_per_fill` every `fill_interval_s`; starts full."""

    __slots__ = ("_at", "_max", "_rate", "_tokens")

    def __init__(self, max_tokens: int, tokens_per_fill: int, fill_interval_s: float, now: float) -> None:
        self._max = float(max_tokens)
        self._rate = tokens_per_fill / fill_interval_s
        self._tokens = float(max_tokens)
        self._at = now

    def take(self, now: float) -> bool:
        """Take one token; False if there is none. `now` in seconds, never running backwards."""
        tokens = self._tokens + (now - self._at) * self._rate
        self._at = now
        if tokens > self._max:
            tokens = self._max
        if tokens >= 1.0:
            self._tokens = tokens - 1.0
            return True
        self._tokens = tokens
        return False

    def admit(self, now: float) -> float:
        return 0.0 if self.take(now) else REFUSED

    def retry_after_s(self, now: float) -> float:
        missing = 1.0 - (self._tokens + (now - self._at) * self._rate)
        return max(0.0, missing / self._rate)

    def remaining(self, now: float) -> int:
        return int(min(self._max, self._tokens + (now - self._at) * self._rate))

    def is_as_new(self, now: float) -> bool:
        return self._tokens + (now - self._at) * self._rate >= self._max
