"""What the coordinator asks of its log: records under a fencing token, and sessions of replicas.

Two facts keep replicas out of each other's way:

- every record names the session that sees to it and carries a *token*, which goes up by one whenever the record changes hands. A write
  names the token that it knows and fails if the log has another: a replica that was paused for an hour cannot write over what happened
  in that hour, whatever it believes;
- a *session* is a replica's sign of life, a number that it keeps counting up. Whoever watches it stand still for long enough, by its
  own clock, may end it, and take over its records. No clock is compared with another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from apps.transactions.coordinator.states import State


class LogError(Exception):
    """The log could not do what was asked; the text says why."""


class LogUnavailable(LogError):
    """It cannot be reached, or is full. A write may or may not have been done; doing it again is safe."""


class Fenced(LogError):
    """The record has changed hands."""


class SessionLost(LogError):
    """The session has been ended by another replica."""


@dataclass(frozen=True, slots=True)
class Record:
    """One transaction in the log."""

    gid: str
    state: State
    is_dead_letter: bool
    owner: str
    """Session."""
    token: int
    created_at: float
    value: bytes
    """The whole transaction; the log does not look into it."""

    def taken_by(self, session: str) -> "Record":
        """The same in other hands."""
        return replace(self, owner=session, token=self.token + 1)


class Log(Protocol):
    """All methods may raise LogUnavailable. What a write has returned from is durable."""

    async def create(self, record: Record) -> bool:
        """False, and nothing is written, if the gid is there."""
        ...

    async def write(self, record: Record, token: int) -> None:
        """Replace the record if the log's token is `token`; else raises Fenced."""
        ...

    async def read(self, gid: str) -> Record | None: ...

    async def orphans(self, limit: int) -> Sequence[Record]:
        """Records that have not ended and whose session has: up to `limit`, oldest first."""
        ...

    async def page(self, states: Sequence[State], only_dead_letters: bool, after: str, limit: int) -> Sequence[Record]:
        """Up to `limit` records in order of gid, from behind `after`; no states means all."""
        ...

    async def count_dead_letters(self) -> int: ...

    async def forget(self, before: float, limit: int) -> int:
        """Delete records that have ended and were made before this time; how many went."""
        ...

    async def open_session(self, session: str, name: str) -> None:
        """A new session; ends the older ones of the same name."""
        ...

    async def beat(self, session: str) -> None:
        """Count up. Raises SessionLost."""
        ...

    async def sessions(self) -> dict[str, int]:
        """Session to its count."""
        ...

    async def end_session(self, session: str, beat: int | None) -> None:
        """End it if its count is still this one; None: in any case. No error if it is gone."""
        ...

    async def close(self) -> None: ...
