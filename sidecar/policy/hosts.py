"""What is balanced over: hosts with their health, by locality and priority level."""

from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from sidecar.policy.balance import Timed, Warming
from sidecar.policy.zones import Locality


class Health(Enum):
    """How a host is, as far as balancing looks at it."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """Takes calls when the healthy ones are too few."""
    UNHEALTHY = "unhealthy"
    LEAVING = "leaving"
    """Goes on purpose, so it is no sign of trouble: it gets no calls and counts for no panic."""


class Host(Warming, Timed, Protocol):
    """What is read of a host here."""

    health: Health
    hash_name: bytes
    """By what it is found in consistent hashing."""


H = TypeVar("H", bound=Host)


@dataclass(frozen=True, slots=True)
class Group(Generic[H]):
    """The hosts of one locality, on one level."""

    locality: Locality
    weight: int
    """Beside the other localities; 0 gets no calls where localities are weighted."""
    hosts: tuple[H, ...]


Level = tuple[Group[H], ...]
"""One priority level: its localities."""
