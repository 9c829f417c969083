"""How many writes the control plane takes in a time: a token bucket. No clock of its own."""

from dataclasses import dataclass


@dataclass(slots=True)
class WriteBudget:
    """Starts full. `now` is seconds on a monotonic clock, always passed in."""

    per_second: float
    burst: float
    """Most writes at once."""
    tokens: float = 0.0
    filled_at: float | None = None

    def take(self, now: float) -> float:
        """Take one write: 0.0, or nothing is taken and the seconds until there will be one."""
        if self.filled_at is None:
            self.tokens = self.burst
        else:
            self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.per_second)
        self.filled_at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.per_second
        self.tokens -= 1
        return 0.0
