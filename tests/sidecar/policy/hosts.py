"""Hosts for tests of balancing."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from sidecar.policy.balance import Latency
from sidecar.policy.hosts import Group, Health, Level


@dataclass(eq=False)
class Host:
    """A host as a balancer sees it."""

    name: str
    weight: int = 1
    active: int = 0
    since: float = -1e9
    health: Health = Health.HEALTHY
    labels: Mapping[str, Hashable] = field(default_factory=dict)
    latency: Latency = field(default_factory=lambda: Latency(0.03, 10.0, 0.0))
    hash_name: bytes = b""

    def __post_init__(self) -> None:
        self.hash_name = self.hash_name or self.name.encode()


def level(*hosts: Host) -> Level[Host]:
    """A level of one locality."""
    return (Group(("", "", ""), 0, hosts),)
