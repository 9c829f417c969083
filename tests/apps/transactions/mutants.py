"""Faults that somebody could make in the library, each a replacement of text, and the tests that must notice."""

from dataclasses import dataclass
from typing import Final

CORE: Final = "barrier/core.py"
AIO: Final = "barrier/aio.py"
PREPARED: Final = "barrier/prepared.py"
SESSION: Final = "barrier/session.py"
EDGE: Final = "barrier/edge.py"
MACHINE: Final = "coordinator/machine.py"
STATES: Final = "coordinator/states.py"
ENGINE: Final = "coordinator/engine.py"
SQL: Final = "coordinator/sql.py"
LOG: Final = "coordinator/log.py"
CHECK: Final = "coordinator/check.py"

KILL: Final = "crash/test_kill.py -k "


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    path: str
    old: str
    """Occurs exactly once."""
    new: str
    tests: str
    """What to run: a file, with options."""


MUTANTS: Final = (
    Mutant("barrier removed", CORE, "    if not _insert(connection, call, call.op, Outcome.OPEN):", "    if not _insert(connection, call, call.op, Outcome.OPEN) and False:", "test_barrier.py -k sqlite"),
    Mutant("dedup key without the transaction", CORE, '{"gid": call.gid,', '{"gid": "g",', "test_barrier.py -k sqlite"),
    Mutant("dedup key without the operation", CORE, '"op": op.value, "outcome"', '"op": "op", "outcome"', "test_barrier.py -k sqlite"),
    Mutant("an undo leaves no block", CORE, "_insert(connection, call, origin, Outcome.BLOCKED):\n        _insert", "_insert(connection, call, origin, Outcome.BLOCKED):\n        connection.execute(delete(BARRIER).where(*_is(call, origin)))\n        _insert", "test_barrier.py -k sqlite"),
    Mutant("an undo without its origin is carried out", CORE, "if phase is Phase.UNDO and origin is not None and _insert", "if phase is Phase.FORWARD and origin is not None and _insert", "test_barrier.py -k sqlite"),
    Mutant("a late try is answered OK", CORE, "    if stored.outcome is Outcome.BLOCKED:", "    if False:", "test_barrier.py -k sqlite"),
    Mutant("the reply is not kept", CORE, "_settle(connection, call, Answer(Outcome.DONE, reply))", "Answer(Outcome.DONE, reply) if _settle(connection, call, Answer(Outcome.DONE, b'')) else None  # type: ignore", "test_barrier.py -k sqlite"),
    Mutant("a refusal is not kept", CORE, "    if PHASES[call.op] is not Phase.FORWARD:\n        raise refused", "    if True:\n        raise refused", "test_interceptor.py -k sqlite"),
    Mutant("a refusal keeps what was written before it", CORE, "        savepoint.rollback()\n        return refuse", "        savepoint.commit()\n        return refuse", "test_barrier.py -k sqlite"),
    Mutant("confirm and cancel do not exclude each other", CORE, "BARRIER.c.outcome == Outcome.DONE).values", "BARRIER.c.outcome != Outcome.OPEN).values", "test_barrier.py -k sqlite"),
    Mutant("asking the initiator does not stop it", CORE, "    _insert(connection, call, call.op, Outcome.BLOCKED)\n    return", "    if not _insert(connection, call, call.op, Outcome.BLOCKED):\n        return True\n    connection.execute(delete(BARRIER).where(*_is(call, call.op)))\n    return False\n    return", "test_barrier.py -k sqlite"),
    Mutant("the answer leaves before the commit", AIO, "        await local._commit()\n        return answer", "        asyncio.get_running_loop().call_later(0.05, session.commit)\n        return answer", "test_interceptor.py -k aio-sqlite"),
    Mutant("an abort is answered before it is kept", AIO, "        raise self.aborted(code, details, tuple(trailing_metadata))", "        await self._context.abort(code, details, trailing_metadata)\n        raise AssertionError", "test_interceptor.py -k aio-sqlite"),
    Mutant("a cancelled call lets go of its connection", AIO, "        while not running.done():", "        for _ in range(2):", "test_interceptor.py -k again_and_again"),
    Mutant("trouble with the database means roll back", EDGE, 'return _explained(grpc.StatusCode.UNAVAILABLE, "DATABASE", f"ask again: {error.orig}")', 'return _explained(grpc.StatusCode.ABORTED, "DATABASE", f"ask again: {error.orig}")', "test_interceptor.py -k locked"),
    Mutant("the log is written after the call", ENGINE, "                    if step.write:\n                        await self._make_durable(now, drive.token)\n", "                    for asked in step.calls:\n                        self._start(self._call(drive, asked))\n                    step = type(step)(step.write, (), step.wake_at)\n                    await asyncio.sleep(0.05)\n                    if step.write:\n                        await self._make_durable(now, drive.token)\n", KILL + "'dies_before and alone'"),
    Mutant("a decision is answered before it is durable", ENGINE, "                    if step.write:\n                        await self._make_durable(now, drive.token)\n                    _answer(drive, now)", "                    _answer(drive, now)\n                    if step.write:\n                        await asyncio.sleep(0.05)\n                        await self._make_durable(now, drive.token)", "test_live.py -k durable"),
    Mutant("a decision is never written", ENGINE, "                    if step.write:\n", "                    if step.write and now.state in ENDS:\n", KILL + "'dies_before and alone'"),
    Mutant("fencing removed", SQL, "_LOG.c.token == bindparam(\"of_token\")", "_LOG.c.token > bindparam(\"of_token\") - 10", "test_log.py -k sqlite"),
    Mutant("taking over keeps the token", LOG, "token=self.token + 1", "token=self.token", "test_live.py -k replica"),
    Mutant("a replica that gives signs of life is buried", SQL, "statement.where(_SESSION.c.beat == beat)", "statement", "test_log.py -k sqlite"),
    Mutant("the living's transactions are orphans", SQL, "_LOG.c.owner.not_in(alive)", "_LOG.c.owner != ''", "test_log.py -k sqlite"),
    Mutant("a gid stands for anything", ENGINE, "if there.is_whole != made.is_whole or codec.digest(there.mode, branches, there.options) != asked:", "if False:", "test_live.py -k something_else"),
    Mutant("compensation in the order of the steps", MACHINE, "[each for each in left if each.spec.name not in waited_for]", "left[:1]", "test_machine.py"),
    Mutant("compensation all at once", MACHINE, "[each for each in left if each.spec.name not in waited_for]", "left", "test_machine.py"),
    Mutant("the refused step is not compensated", MACHINE, "branch.state in (BranchState.UNDONE, BranchState.WAITING)", "branch.state in (BranchState.UNDONE, BranchState.WAITING, BranchState.REFUSED)", "test_machine.py"),
    Mutant("a crash forgets what may have been called", MACHINE, "        if is_from_log and self.state is State.RUNNING:\n            self._suspect_calls()", "", "test_machine.py"),
    Mutant("what the initiator tried is forgotten", MACHINE, "        elif self.state is State.OPEN:\n            self._suspect_calls()", "", "test_machine.py"),
    Mutant("the step without a way back is not written down", MACHINE, "            self._is_past_return = True\n            self._is_dirty = True", "            self._is_past_return = True", "test_machine.py"),
    Mutant("time runs out behind the step without a way back", MACHINE, "        return not self._is_past_return and not (", "        return not (", "test_machine.py"),
    Mutant("the step without a way back does not wait", MACHINE, "return [each for each in ready if not each.spec.cannot_be_undone]", "return ready", "test_machine.py"),
    Mutant("dead letters make no alarm", MACHINE, "            self.is_dead_letter = True\n", "            pass\n", "test_machine.py"),
    Mutant("a decision can be changed", STATES, "    (State.FINISHING, Signal.FORCED): State.SUCCEEDED,\n    (State.UNDOING, Signal.ALL_UNDONE)", "    (State.FINISHING, Signal.ABORT_ASKED): State.UNDOING,\n    (State.UNDOING, Signal.ALL_UNDONE)", "test_machine.py"),
    Mutant("silence is taken for a commit", STATES, "        (State.OPEN, Signal.TIME_OVER): State.ASKING,", "        (State.OPEN, Signal.TIME_OVER): State.FINISHING,", "test_live.py -k message"),
    Mutant("silence is taken for a yes by TCC and XA", STATES, "    (State.OPEN, Signal.TIME_OVER): State.UNDOING,\n    (State.RUNNING, Signal.REFUSED)", "    (State.OPEN, Signal.TIME_OVER): State.FINISHING,\n    (State.RUNNING, Signal.REFUSED)", "test_live.py -k vanishes"),
    Mutant("what is unknown is taken for a refusal", "verdict.py", "    return Verdict.UNKNOWN", "    return Verdict.REFUSED", "test_live.py -k away"),
    Mutant("a refusal is repeated for ever", "verdict.py", "        return Verdict.REFUSED", "        return Verdict.UNKNOWN", "test_live.py -k takes_the_whole"),
    Mutant("a branch is called before it is added", "client.py", "        await self._enlist(_tcc_branch(name, request, confirm, cancel, confirm_request, cancel_request))\n        return await self._forward(name, Op.TRY, target, request, reply)", "        answer = await self._forward(name, Op.TRY, target, request, reply)\n        await self._enlist(_tcc_branch(name, request, confirm, cancel, confirm_request, cancel_request))\n        return answer", "test_live.py -k before_it_is_called"),
    Mutant("an exception submits", "client.py", "        if error is None:", "        if True:", "test_live.py -k 'refused_try or local_transaction'"),
    Mutant("a rollback leaves no block", PREPARED, "        answer = core.enter(connection, call)\n", "        answer = Answer(Outcome.EMPTY, b'')\n", "test_xa.py"),
    Mutant("a prepare commits at once", PREPARED, 'connection.exec_driver_sql(f"PREPARE TRANSACTION \'{name(call.gid, call.branch)}\'")', "connection.commit()", "test_xa.py"),
    Mutant("a prepare in doubt has no reply", PREPARED, '        reply = connection.execute(select(PREPARED_REPLIES.c.reply).where(*_is(call))).scalar_one_or_none()', "        reply = b''", "test_xa.py"),
    Mutant("presumed commit", "xa.py", "return Decision.ROLL_BACK if error.code()", "return Decision.COMMIT if error.code()", "test_xa.py"),
    Mutant("a participant waits at its start for what is in doubt", "barrier/schema.py", "        if inspect(engine).has_table(table.name):\n            continue", "        with engine.begin() as there:\n            there.exec_driver_sql('LOCK TABLE tx_barrier IN SHARE MODE') if inspect(there).has_table('tx_barrier') and there.dialect.name == 'postgresql' else None\n        if inspect(engine).has_table(table.name):\n            continue", "test_xa.py -k starts"),
    Mutant("an event is forgotten before it is delivered", "outbox.py", '                with crossing("send", "event"):', '                await asyncio.to_thread(self._forget, event)\n                with crossing("send", "event"):', KILL + "'dies_before and outbox'"),
    Mutant("a later event overtakes", "outbox.py", "        oldest = select(func.min(_OUTBOX.c.id)).group_by(_OUTBOX.c.key)", "        oldest = select(_OUTBOX.c.id)", "test_outbox.py -k sqlite"),
    Mutant("an event goes without its transaction", "outbox.py", "    connection.execute(insert(_OUTBOX).values(**values))", "    with connection.engine.begin() as aside:\n        aside.execute(insert(_OUTBOX).values(**values))", "test_outbox.py -k 'with_its_local and postgresql'"),
    Mutant("a cycle is taken", CHECK, "    if circle:", "    if False:", "test_live.py -k CYCLE"),
    Mutant("what is written goes with whoever asked", ENGINE, "await self._carry_through(self._write_first(drive))", "await self._write_first(drive)", "test_live.py -k goes_away"),
    Mutant("a doubtful first write is forgotten", ENGINE, "            self._doubtful.add(drive.machine.gid)\n", "", "test_live.py -k log_failed"),
)  # fmt: skip
"""Kept one a line: they are read as a table."""
