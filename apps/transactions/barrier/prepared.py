"""A branch that is a prepared transaction of PostgreSQL: prepared, it survives everything until it is committed or rolled back.

The barrier's row of the prepare is part of the prepared transaction, so nobody can read it, nor the reply in it, while the branch is in
doubt. So a prepare's reply is kept in a table of its own, written just before; a repetition finds the prepared transaction by its name.

A late prepare must not come after the rollback: the rollback leaves a BLOCKED row. A prepare that is under way holds that row's key;
then the rollback gives up after LOCK_TIMEOUT_MS and is asked again, and finds either the prepared transaction or a free key.
"""

from typing import Any, Final

from psycopg import errors
from sqlalchemy import Connection, Engine, delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from apps.transactions.barrier import core
from apps.transactions.barrier.core import Answer, Contradiction, Outcome
from apps.transactions.barrier.schema import BARRIER, PREPARED_REPLIES
from apps.transactions.context import BranchCall, Op
from apps.transactions.seam import crossing

LOCK_TIMEOUT_MS: Final = 500
PREFIX: Final = "tx:"


def name(gid: str, branch: str) -> str:
    """What PostgreSQL calls the branch; both parts have passed `context.complaint`, so this needs no quoting."""
    return f"{PREFIX}{gid}:{branch}"


def enter(connection: Connection, call: BranchCall) -> Answer | None:
    """`core.enter` for a prepare."""
    if _is_prepared(connection, call):
        reply = connection.execute(select(PREPARED_REPLIES.c.reply).where(*_is(call))).scalar_one_or_none()
        return Answer(Outcome.DONE, bytes(reply or b""), is_repeat=True)
    _bound_waiting(connection)
    return core.enter(connection, call)


def prepare(engine: Engine, connection: Connection, call: BranchCall, reply: bytes) -> None:
    """Prepare what `connection` has done; it is then in no transaction any more."""
    with crossing("write", "xa.reply"), engine.begin() as aside:
        aside.execute(
            insert(PREPARED_REPLIES)
            .values(gid=call.gid, branch=call.branch, reply=reply)
            .on_conflict_do_update(index_elements=["gid", "branch"], set_={"reply": reply})
        )
    with crossing("write", "xa.prepare"):
        connection.exec_driver_sql(f"PREPARE TRANSACTION '{name(call.gid, call.branch)}'")


def commit(engine: Engine, call: BranchCall) -> Answer:
    """Commit the branch, or find that it is. Raises Contradiction if it was never prepared."""
    with crossing("write", "xa.commit"):
        was_there = _end(engine, f"COMMIT PREPARED '{name(call.gid, call.branch)}'")
    with engine.begin() as connection:
        outcome = _outcome(connection, call)
        if outcome is not Outcome.DONE:
            found = outcome or "not there"
            raise Contradiction(core.NEVER_DONE, f"{call}: prepare is {found}, so there is nothing to commit")
        connection.execute(delete(PREPARED_REPLIES).where(*_is(call)))
    return Answer(Outcome.DONE, b"", is_repeat=not was_there)


def roll_back(engine: Engine, call: BranchCall) -> Answer:
    """Roll the branch back, and keep a late prepare out. Raises Contradiction if it is committed."""
    with crossing("write", "xa.rollback"):
        was_there = _end(engine, f"ROLLBACK PREPARED '{name(call.gid, call.branch)}'")
    with crossing("write", "xa.block"), engine.begin() as connection:
        _bound_waiting(connection)
        answer = core.enter(connection, call)
        connection.execute(delete(PREPARED_REPLIES).where(*_is(call)))
        if answer is None:
            raise Contradiction(core.ALREADY_FINISHED, f"{call}: the branch is committed and cannot be rolled back")
    return Answer(Outcome.DONE, b"") if was_there else answer


def in_doubt(engine: Engine) -> list[BranchCall]:
    """The branches that are prepared in this database, oldest first."""
    query = text(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, :prefix)"
        " ORDER BY prepared"
    )
    with engine.connect() as connection:
        names = connection.execute(query, {"prefix": PREFIX}).scalars().all()
    parts = [each.removeprefix(PREFIX).split(":", 1) for each in names]
    return [BranchCall(gid, branch, Op.PREPARE) for gid, branch in parts]


def _end(engine: Engine, statement: str) -> bool:
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        if isinstance(error.orig, errors.UndefinedObject):
            return False
        raise
    return True


def _is_prepared(connection: Connection, call: BranchCall) -> bool:
    query = text("SELECT 1 FROM pg_prepared_xacts WHERE database = current_database() AND gid = :name")
    return connection.execute(query, {"name": name(call.gid, call.branch)}).first() is not None


def _bound_waiting(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")


def _outcome(connection: Connection, call: BranchCall) -> Outcome | None:
    query = select(BARRIER.c.outcome).where(
        BARRIER.c.gid == call.gid, BARRIER.c.branch == call.branch, BARRIER.c.op == Op.PREPARE.value
    )
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else Outcome(found)


def _is(call: BranchCall) -> tuple[Any, ...]:
    return PREPARED_REPLIES.c.gid == call.gid, PREPARED_REPLIES.c.branch == call.branch
