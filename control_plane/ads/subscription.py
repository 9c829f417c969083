"""What a node asks for of one type, what it was told, and what it said of that. Values; the rules are in `core`."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from control_plane.translate.content import NO_NAMES, NOTHING, Content, version

UNKNOWN: Final = b""
"""Stands for the bytes of a resource that a node has in a form that is not known here."""


class Answer(Enum):
    """What a request says of the last response of its type."""

    NONE = "none"
    ACK = "ack"
    NACK = "nack"


class Response(NamedTuple):
    """A response, ready to be sent."""

    type_url: str
    data: bytes


class Part(NamedTuple):
    """What one response says."""

    puts: Set[str] | None
    """Of what the node is to have; None for all of it."""
    stays: Mapping[str, bytes] = {}
    """What it is not to have in the end, and keeps for now (types that are sent whole)."""
    gone: Set[str] = NO_NAMES
    """Names of which there is nothing (any more)."""


@dataclass(slots=True)
class Subscription:
    """One type on one stream."""

    type_url: str
    is_everything: bool
    """The wildcard."""
    names: frozenset[str] = NO_NAMES
    """What is asked for by name."""
    is_whole: bool = False
    """A response holds all resources: absence deletes."""
    removes: bool = False
    """A response can say of a name that there is nothing by it (any more)."""
    is_due: bool = False
    """A response is owed although there may be nothing to say."""
    initial: Mapping[str, str] | None = None
    """Versions that the node says it has; None as soon as they were looked at."""
    nonce: str = ""
    is_answered: bool = True
    """False while a response is under way."""
    sent: Mapping[str, bytes] = field(default_factory=lambda: NOTHING)
    """What the node has as soon as it takes the last response; shared with other nodes wherever it can be."""
    again: frozenset[str] = NO_NAMES
    """Names to answer although nothing changed (types that are sent in part)."""
    under_way: frozenset[str] = NO_NAMES
    """What the response under way is about: all names in it, or what is new to the node in it (types that are sent whole)."""
    refused: frozenset[str] = NO_NAMES
    """What the node refused in the form that it was sent last; it has an older one, or none."""
    halves: tuple[frozenset[str], ...] = ()
    """Parts of a refused response, each to be sent alone (types that are sent in part)."""
    version_sent: str = ""
    version_acked: str = ""
    version_nacked: str = ""
    nack_reason: str = ""
    sent_at: float = 0.0
    lag_ms: float = 0.0

    @property
    def asked(self) -> frozenset[str] | None:
        """The names that are asked for; None for all."""
        return None if self.is_everything else self.names

    def narrow(self) -> None:
        """Forget what was sent and is not asked for any more."""
        if self.is_everything:
            return
        self.again &= self.names
        if not isinstance(self.sent, Content):
            self.sent = {name: data for name, data in self.sent.items() if name in self.names}
        elif self.sent.names is None:
            self.sent = self.sent.part(self.names)
        elif not self.sent.names <= self.names:
            self.sent = self.sent.part(self.sent.names & self.names)

    def believe(self, wanted: Content, version_wanted: str) -> None:
        """Take the versions that the node says it has for what was sent, as far as they are what it is to have."""
        if self.initial is None:
            return
        names = self.initial.keys() if wanted.names is None else self.initial.keys() & wanted.names
        has = {name: wanted.get(name, UNKNOWN) for name in names}
        for name, data in has.items():
            if version(data) != self.initial[name]:
                has[name] = UNKNOWN
        self.initial = None
        self.sent = has
        if not wanted.since(has):
            self.sent = wanted
            self.version_sent = self.version_acked = version_wanted
