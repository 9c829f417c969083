"""Kinds of data planes, and how new one is: from what a node says of itself. Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

Version = tuple[int, ...]


class Client(StrEnum):
    """A kind of data plane, by what messages call it."""

    REMORA = "Remora's sidecar"
    ENVOY = "Envoy"
    CORE = "gRPC C-core"
    GO = "gRPC Go"
    JAVA = "gRPC Java"
    NODE = "gRPC Node"


PROXYLESS: Final = frozenset((Client.CORE, Client.GO, Client.JAVA, Client.NODE))
SIDECARS: Final = frozenset((Client.REMORA, Client.ENVOY))
NEWEST: Final[Version] = (1 << 30,)
"""Of a client that says no version."""
_AGENTS: Final = (
    ("gRPC C-core", Client.CORE),
    ("gRPC Go", Client.GO),
    ("gRPC Java", Client.JAVA),
    ("gRPC Node", Client.NODE),
    ("envoy", Client.ENVOY),
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a client: which, and how new. Nodes of one profile can do the same."""

    client: Client = Client.REMORA
    version: Version = NEWEST

    def __str__(self) -> str:
        if self.version == NEWEST or self.client in SIDECARS:
            return self.client.value
        return f"{self.client.value} {'.'.join(map(str, self.version))}"

    @property
    def is_proxyless(self) -> bool:
        return self.client in PROXYLESS


SIDECAR: Final = Profile()


def profile(agent: str, version: str) -> Profile:
    """From a node's `user_agent_name` and `user_agent_version`.

    Of the C-core's the version is that of its language, as the table of features counts: `C-core 58.0.0 Python 1.85.3`.
    """
    client = next((client for beginning, client in _AGENTS if agent.startswith(beginning)), Client.REMORA)
    found = re.findall(r"(\d{1,6})\.(\d{1,6})(?:\.\d{1,6})*", version[:256], re.ASCII)
    if client is Client.CORE and len(found) < 2:
        found = []  # that of the core alone, which counts otherwise
    return Profile(client, tuple(map(int, found[-1])) if found and client in PROXYLESS else NEWEST)
