"""What is recorded of a run: facts, one a line of JSON. Order within one source is the order in which it happened there."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Opening:
    """What was held at the beginning."""

    holding: str
    group: str
    """What the holdings of one group hold together is constant: `money`, `books`."""
    amount: int


@dataclass(frozen=True, slots=True)
class Began:
    gid: str
    mode: str
    branches: tuple[str, ...]
    """Those that change a ledger."""
    at: float


@dataclass(frozen=True, slots=True)
class Logged:
    """A durable write of the coordinator's log."""

    gid: str
    state: str
    token: int


@dataclass(frozen=True, slots=True)
class Effect:
    """A row of a participant's ledger."""

    gid: str
    branch: str
    op: str
    holding: str
    free: int
    """Change of what anybody may use, and see."""
    frozen: int = 0
    """Change of what is reserved."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a participant answered."""

    gid: str
    branch: str
    op: str
    code: str
    """Name of the gRPC status."""
    reply: str
    is_empty: bool = False
    """An undo that had nothing to take back."""


@dataclass(frozen=True, slots=True)
class Published:
    """An event whose local transaction committed, in order of commits."""

    event: str
    key: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """An event's effect at a consumer, in order of effects."""

    event: str


@dataclass(frozen=True, slots=True)
class Alarmed:
    """A dead letter was reported."""

    gid: str


@dataclass(frozen=True, slots=True)
class Ended:
    """What the log says in the end; a state that is no end means that it hangs."""

    gid: str
    state: str
    at: float


@dataclass(frozen=True, slots=True)
class InDoubt:
    """A prepared branch that is left in the end."""

    gid: str
    branch: str


@dataclass(frozen=True, slots=True)
class Closing:
    """What is held in the end."""

    holding: str
    free: int
    frozen: int = 0


Fact = Opening | Began | Logged | Effect | Answered | Published | Delivered | Alarmed | Ended | InDoubt | Closing
_KINDS: Final[dict[str, Any]] = {
    kind.__name__: kind
    for kind in (Opening, Began, Logged, Effect, Answered, Published, Delivered, Alarmed, Ended, InDoubt, Closing)
}


def save(facts: Iterable[Fact], path: Path) -> None:
    """One fact a line."""
    lines = (json.dumps({"fact": type(each).__name__, **asdict(each)}, sort_keys=True) for each in facts)
    path.write_text("".join(f"{line}\n" for line in lines))


def load(path: Path) -> list[Fact]:
    """Raises ValueError, naming the line, for what is no history."""
    facts: list[Fact] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            fields = json.loads(line)
            kind = _KINDS[fields.pop("fact")]
            facts.append(kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: is no fact of a history: {error}") from None
    return facts
