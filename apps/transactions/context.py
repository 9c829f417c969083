"""What travels with every call of a transaction: which transaction, which branch of it, and what is asked of the branch.

Three metadata keys carry it: `x-tx-gid`, `x-tx-branch`, `x-tx-op`; a fourth, `x-tx-protocol`, says which meaning of these three.
Together the first three are the key by which a participant knows a repetition when it sees one.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

GID_KEY: Final = "x-tx-gid"
BRANCH_KEY: Final = "x-tx-branch"
OP_KEY: Final = "x-tx-op"
PROTOCOL_KEY: Final = "x-tx-protocol"
PROTOCOL: Final = "1"
"""A participant refuses what speaks another version: what a newer coordinator means, it could only guess."""

MAX_GID: Final = 100
MAX_BRANCH: Final = 40
"""Characters. Both together must fit into PostgreSQL's name of a prepared transaction (199 bytes)."""
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")

DOMAIN: Final = "transactions"
"""Says in a status's details (google.rpc.ErrorInfo.domain) that this library speaks."""


class Op(StrEnum):
    """What is asked of a branch."""

    ACTION = "action"
    COMPENSATE = "compensate"
    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    PREPARE = "prepare"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    DELIVER = "deliver"
    QUERY = "query"
    """Did the initiator's own local transaction commit? OK says yes, ABORTED says no and that it never will."""


class Phase(Enum):
    """An operation moves a transaction forward, finishes what is decided, or takes back."""

    FORWARD = "forward"
    FINISH = "finish"
    UNDO = "undo"


PHASES: Final = {
    Op.ACTION: Phase.FORWARD,
    Op.TRY: Phase.FORWARD,
    Op.PREPARE: Phase.FORWARD,
    Op.DELIVER: Phase.FORWARD,
    Op.QUERY: Phase.FORWARD,
    Op.CONFIRM: Phase.FINISH,
    Op.COMMIT: Phase.FINISH,
    Op.COMPENSATE: Phase.UNDO,
    Op.CANCEL: Phase.UNDO,
    Op.ROLLBACK: Phase.UNDO,
}
ORIGINS: Final = {
    Op.COMPENSATE: Op.ACTION,
    Op.CONFIRM: Op.TRY,
    Op.CANCEL: Op.TRY,
    Op.COMMIT: Op.PREPARE,
    Op.ROLLBACK: Op.PREPARE,
}
"""What an operation that finishes or undoes refers to."""


class Verdict(Enum):
    """What an answer means to whoever drives the transaction (`verdict` reads it from a status)."""

    DONE = "done"
    REFUSED = "refused"
    ONGOING = "ongoing"
    UNKNOWN = "unknown"


class BadContext(Exception):
    """The metadata of a call name no branch; the text says what is wrong."""


class VersionSkew(BadContext):
    """The caller speaks another version of this protocol."""


@dataclass(frozen=True, slots=True)
class BranchCall:
    """One operation on one branch of one transaction: the barrier's unique key."""

    gid: str
    branch: str
    op: Op

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What to send with the call."""
        return (
            (GID_KEY, self.gid),
            (BRANCH_KEY, self.branch),
            (OP_KEY, self.op.value),
            (PROTOCOL_KEY, PROTOCOL),
        )

    def __str__(self) -> str:
        return f"{self.gid}/{self.branch}/{self.op}"


def complaint(field: str, value: str, most: int) -> str | None:
    """Why a name cannot be a gid or a branch; None if it can."""
    if not value:
        return f"{field}: is missing; give 1 to {most} letters, digits, . _ -"
    if len(value) > most:
        return f"{field}: is too long ({len(value)} characters); at most {most} are allowed"
    if _NAME.fullmatch(value) is None:
        return f"{field}: {value!r} has characters that are not allowed; letters, digits, . _ - are"
    return None


def branch_call(metadata: Iterable[tuple[str, str | bytes]]) -> BranchCall | None:
    """The branch that a call's metadata name; None if they name none. Raises BadContext."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if key in (GID_KEY, BRANCH_KEY, OP_KEY, PROTOCOL_KEY):
            if key in found:
                raise BadContext(f"{key}: is there twice; give it once")
            found[key] = value if isinstance(value, str) else value.decode("ascii", "replace")
    if GID_KEY not in found:
        return None
    version = found.get(PROTOCOL_KEY, PROTOCOL)
    if version != PROTOCOL:
        raise VersionSkew(f"{PROTOCOL_KEY}: {version!r} is not spoken here; {PROTOCOL} is")
    gid, branch, op = found[GID_KEY], found.get(BRANCH_KEY, ""), found.get(OP_KEY, "")
    wrong = complaint(GID_KEY, gid, MAX_GID) or complaint(BRANCH_KEY, branch, MAX_BRANCH)
    if wrong is None and op not in Op.__members__.values():
        wrong = f"{OP_KEY}: {op!r} is no operation; one of {', '.join(Op)} is"
    if wrong is not None:
        raise BadContext(wrong)
    return BranchCall(gid, branch, Op(op))
