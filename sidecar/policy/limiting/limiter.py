"""What all rate limiters have in common. Cores: `now` in seconds is a parameter and never runs backwards."""

from typing import Final

REFUSED: Final = -1.0


class Limiter:
    """Says of one call after the other whether it may go."""

    def admit(self, now: float) -> float:
        """Count one call: 0 it may go, above 0 it may go after so many seconds, `REFUSED` it may not and is not counted."""
        raise NotImplementedError

    def retry_after_s(self, now: float) -> float:
        """Seconds until a call may go (or may wait) again, if nobody else comes; 0 if it may now."""
        raise NotImplementedError

    def remaining(self, now: float) -> int:
        """Calls that may go now."""
        raise NotImplementedError

    def is_as_new(self, now: float) -> bool:
        """True if nothing would change were it forgotten and made again."""
        raise NotImplementedError

    def release(self) -> None:
        """A call that was let go is over."""
