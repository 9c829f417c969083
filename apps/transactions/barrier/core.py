"""Every operation on a branch takes effect once, in the order that its meaning allows, whatever order it arrives in.

Theory of operation. An operation is written down, by its key (gid, branch, op), in the same local transaction as what it does. The
database's unique index then settles everything that a look beforehand cannot settle, for nothing can happen between a look and a write
that are one:

- a *repetition* finds its own row, does nothing and gets the reply that is stored there;
- an *undo that comes first* (its try was lost, or is late) finds no row of its origin, writes one as BLOCKED, and does nothing;
- a *late try* then finds that row and is refused: it would hold a reservation that nobody will ever cancel ("hanging");
- an *undo and a finish* each claim their origin's row, which goes from DONE to UNDONE or to FINISHED, and never to both.

A refusal is a result like any other: what the work wrote is rolled back to a savepoint, the row and the refusal stay, and a repetition
is refused in the same words. Any other failure rolls everything back, the row too, so that a repetition can try again.

The caller begins and commits the local transaction. On PostgreSQL an insert waits for a concurrent one of the same key to end, on
SQLite the write lock does that, so the isolation level READ COMMITTED is enough; under a stricter one the database may ask for a retry.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from apps.transactions.barrier.schema import BARRIER
from apps.transactions.context import DOMAIN, ORIGINS, PHASES, BranchCall, Op, Phase

MAX_REPLY_BYTES: Final = 64 * 1024
"""A reply is kept with its row. A larger one fails the call, and nothing is written."""
INITIATOR: Final = "initiator"
"""The branch under which an initiator's own local transaction stands (`mark`)."""

_INSERTS: Final[dict[str, Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Outcome(StrEnum):
    """What became of an operation."""

    OPEN = "open"
    """Under way; seen by nobody but the transaction that writes it."""
    DONE = "done"
    REFUSED = "refused"
    BLOCKED = "blocked"
    """Never came, and must not come any more: its undo was here first."""
    EMPTY = "empty"
    """An undo that had nothing to take back."""
    FINISHED = "finished"
    """Was done, and a finish has claimed it."""
    UNDONE = "undone"
    """Was done, and an undo has claimed it."""


class Refused(Exception):
    """The business says no: roll back. The status travels to the caller, code ABORTED, details included."""

    def __init__(self, message: str, reason: str = "", details: tuple[any_pb2.Any, ...] = ()) -> None:
        super().__init__(message)
        self.status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message=message, details=details)
        if reason:
            self.status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))


class Contradiction(Exception):
    """What is asked cannot be true if coordinator and participant both kept their records: a case for a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ReplyTooLarge(Exception):
    """The reply is over MAX_REPLY_BYTES."""


HANGING: Final = "HANGING"
"""ErrorInfo.reason of the refusal that a late operation gets."""
NEVER_DONE: Final = "NEVER_DONE"
ALREADY_FINISHED: Final = "ALREADY_FINISHED"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the participant says, now and at every repetition."""

    outcome: Outcome
    reply: bytes
    """The serialised reply; if refused, the serialised google.rpc.Status."""
    is_repeat: bool = False


def run(connection: Connection, call: BranchCall, work: Callable[[], bytes]) -> Answer:
    """Do `work` once for this call, within the transaction that `connection` is in.

    `work` returns the serialised reply, or raises Refused. Raises Contradiction, and what `work` raises: then the
    transaction must be rolled back.
    """
    answer = enter(connection, call)
    if answer is not None:
        return answer
    savepoint = connection.begin_nested()
    try:
        reply = work()
    except Refused as refused:
        savepoint.rollback()
        return refuse(connection, call, refused)
    savepoint.commit()
    return leave(connection, call, reply)


def enter(connection: Connection, call: BranchCall) -> Answer | None:
    """Claim the call. None: do the work, then `leave` or `refuse`. Raises Contradiction."""
    phase, origin = PHASES[call.op], ORIGINS.get(call.op)
    if phase is Phase.UNDO and origin is not None and _insert(connection, call, origin, Outcome.BLOCKED):
        _insert(connection, call, call.op, Outcome.EMPTY)
        return Answer(Outcome.EMPTY, b"")
    if not _insert(connection, call, call.op, Outcome.OPEN):
        return _repetition(connection, call)
    if origin is None:
        return None
    return _claim(connection, call, origin, Outcome.UNDONE if phase is Phase.UNDO else Outcome.FINISHED)


def leave(connection: Connection, call: BranchCall, reply: bytes) -> Answer:
    """Write down that the work is done, and what is answered. Raises ReplyTooLarge."""
    if len(reply) > MAX_REPLY_BYTES:
        raise ReplyTooLarge(f"a reply of {len(reply)} bytes; at most {MAX_REPLY_BYTES} are kept with a branch")
    return _settle(connection, call, Answer(Outcome.DONE, reply))


def refuse(connection: Connection, call: BranchCall, refused: Refused) -> Answer:
    """Write down a refusal. Only what moves a transaction forward may be refused: else `refused` is raised again."""
    if PHASES[call.op] is not Phase.FORWARD:
        raise refused
    return _settle(connection, call, Answer(Outcome.REFUSED, refused.status.SerializeToString()))


def mark(connection: Connection, gid: str) -> bool:
    """Write down, in the initiator's own local transaction, that it commits. False: it did before.

    Raises Refused if the coordinator asked in the meantime and was told that it did not: roll back.
    """
    call = BranchCall(gid, INITIATOR, Op.ACTION)
    if _insert(connection, call, call.op, Outcome.DONE):
        return True
    if _read(connection, call, call.op).outcome is Outcome.DONE:
        return False
    raise Refused(f"{gid} was given up while its local transaction was under way", HANGING)


def was_marked(connection: Connection, gid: str) -> bool:
    """Whether the initiator's local transaction committed. False is final: it cannot commit any more."""
    call = BranchCall(gid, INITIATOR, Op.ACTION)
    _insert(connection, call, call.op, Outcome.BLOCKED)
    return _read(connection, call, call.op).outcome is Outcome.DONE


def forget(connection: Connection, before: float, limit: int = 1000) -> int:
    """Delete rows older than `before` (seconds since 1970); how many went.

    Older than any repetition can be: longer than the coordinator keeps at a transaction.
    """
    old = select(BARRIER.c.gid, BARRIER.c.branch, BARRIER.c.op).where(BARRIER.c.at < before).limit(limit)
    rows = connection.execute(old).all()
    for gid, branch, op in rows:
        connection.execute(delete(BARRIER).where(BARRIER.c.gid == gid, BARRIER.c.branch == branch, BARRIER.c.op == op))
    return len(rows)


def _insert(connection: Connection, call: BranchCall, op: Op, outcome: Outcome) -> bool:
    insert = _INSERTS.get(connection.dialect.name)
    if insert is None:
        raise ValueError(f"the barrier knows {' and '.join(_INSERTS)}, not {connection.dialect.name}")
    row = {"gid": call.gid, "branch": call.branch, "op": op.value, "outcome": outcome.value, "reply": b""}
    statement = insert(BARRIER).values(**row, at=time.time()).on_conflict_do_nothing()
    # Not by `rowcount`: for an insert SQLAlchemy gives -1 with psycopg.
    return connection.execute(statement.returning(BARRIER.c.op)).first() is not None


def _read(connection: Connection, call: BranchCall, op: Op) -> Answer:
    row = connection.execute(select(BARRIER.c.outcome, BARRIER.c.reply).where(*_is(call, op))).one_or_none()
    if row is None:
        raise Contradiction(NEVER_DONE, f"{call}: the record of {op} is gone")
    return Answer(Outcome(row.outcome), bytes(row.reply))


def _repetition(connection: Connection, call: BranchCall) -> Answer:
    stored = _read(connection, call, call.op)
    if stored.outcome is Outcome.BLOCKED:
        late = Refused(f"{call} comes after it was taken back", HANGING)
        return Answer(Outcome.BLOCKED, late.status.SerializeToString(), is_repeat=True)
    return Answer(stored.outcome, stored.reply, is_repeat=True)


def _claim(connection: Connection, call: BranchCall, origin: Op, outcome: Outcome) -> Answer | None:
    claim = update(BARRIER).where(*_is(call, origin), BARRIER.c.outcome == Outcome.DONE).values(outcome=outcome.value)
    if connection.execute(claim).rowcount:
        return None
    found = connection.execute(select(BARRIER.c.outcome).where(*_is(call, origin))).scalar_one_or_none()
    if outcome is Outcome.UNDONE and found in (Outcome.REFUSED, Outcome.BLOCKED):
        return _settle(connection, call, Answer(Outcome.EMPTY, b""))
    if outcome is Outcome.UNDONE:
        raise Contradiction(ALREADY_FINISHED, f"{call}: {origin} is {found} already and cannot be taken back")
    raise Contradiction(NEVER_DONE, f"{call}: {origin} is {found or 'not there'}, so there is nothing to finish")


def _settle(connection: Connection, call: BranchCall, answer: Answer) -> Answer:
    values = {"outcome": answer.outcome.value, "reply": answer.reply}
    if not connection.execute(update(BARRIER).where(*_is(call, call.op)).values(**values)).rowcount:
        raise Contradiction(NEVER_DONE, f"{call}: its own record is gone")
    return answer


def _is(call: BranchCall, op: Op) -> tuple[Any, ...]:
    return BARRIER.c.gid == call.gid, BARRIER.c.branch == call.branch, BARRIER.c.op == op.value
