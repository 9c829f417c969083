"""One call's local transaction, from claim to commit: the steps that both interceptors take, in their order."""

from sqlalchemy import Connection, Engine, NestedTransaction

from apps.transactions.barrier import core
from apps.transactions.barrier.core import Answer, Outcome, Refused
from apps.transactions.context import BranchCall, Op
from apps.transactions.seam import crossing


class Session:
    """Blocking; used by one thread at a time. `close` must follow, whatever happens."""

    def __init__(self, engine: Engine, call: BranchCall | None) -> None:
        self.call = call
        """None: a plain local transaction, begun at first use."""
        self._engine = engine
        self._connection: Connection | None = None
        self._savepoint: NestedTransaction | None = None
        self._answer: Answer | None = None

    @property
    def connection(self) -> Connection:
        """In a transaction; do not commit it."""
        if self._connection is None:
            self._connection = self._engine.connect()
            self._connection.begin()
        return self._connection

    def enter(self) -> Answer | None:
        """None: do the work on `connection`, then `leave` or `refuse`; else `commit` and give this answer."""
        call = self.call
        if call is None:
            return None
        match call.op:
            case Op.QUERY:
                self._answer = self._queried(call)
            case Op.COMMIT | Op.ROLLBACK:
                from apps.transactions.barrier import prepared  # only with XA is psycopg needed

                self._answer = (prepared.commit if call.op is Op.COMMIT else prepared.roll_back)(self._engine, call)
            case Op.PREPARE:
                from apps.transactions.barrier import prepared

                self._answer = prepared.enter(self.connection, call)
            case _:
                self._answer = core.enter(self.connection, call)
        if self._answer is None:
            self._savepoint = self.connection.begin_nested()
        return self._answer

    def leave(self, reply: bytes) -> Answer:
        """The work is done."""
        if self.call is None:
            return Answer(Outcome.DONE, reply)
        if self._savepoint is not None:
            self._savepoint.commit()
        self._answer = core.leave(self.connection, self.call, reply)
        return self._answer

    def refuse(self, refused: Refused) -> Answer:
        """The work ended with a refusal. Raises it again if only the caller is to know, and nothing is to stay."""
        if self.call is None:
            raise refused
        if self._savepoint is not None:
            self._savepoint.rollback()
        self._answer = core.refuse(self.connection, self.call, refused)
        return self._answer

    def commit(self) -> None:
        """Make it durable. Only then may the answer leave the process."""
        connection = self._connection
        if connection is None:
            return
        answer = self._answer
        if self.call is not None and self.call.op is Op.PREPARE and answer is not None:
            if answer.outcome is Outcome.DONE and not answer.is_repeat:
                from apps.transactions.barrier import prepared

                prepared.prepare(self._engine, connection, self.call, answer.reply)
            connection.commit()
            return
        with crossing("write", "barrier.commit"):
            connection.commit()

    def close(self) -> None:
        """Roll back what is not committed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _queried(self, call: BranchCall) -> Answer:
        if core.was_marked(self.connection, call.gid):
            return Answer(Outcome.DONE, b"", is_repeat=True)
        refused = Refused(f"{call.gid} was never committed here, and never will be", "NOT_COMMITTED")
        return Answer(Outcome.REFUSED, refused.status.SerializeToString(), is_repeat=True)
