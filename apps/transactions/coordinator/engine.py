"""Carries out what the machines decide: one task a transaction, the only one that touches its machine.

The order of things is the whole point: write, and only when that is durable, call; write a decision, and only when that is durable,
answer who asked for it. A request from outside is put into the task's inbox and answered behind the write that it caused.

Replicas share the log. A transaction is seen to by the session that its record names; whoever takes it over raises its token, and the
one before cannot write any more (`log`). It may still call, for a while; that is harmless, since everything it calls for follows from
decisions that are in the log, and the barrier keeps late calls out.
"""

import asyncio
import contextlib
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

import grpc

from apps.transactions.context import BranchCall, Verdict
from apps.transactions.coordinator import codec, metrics
from apps.transactions.coordinator.check import ANY, IllFormed, check, check_branches
from apps.transactions.coordinator.log import Fenced, Log, LogUnavailable, Record, SessionLost
from apps.transactions.coordinator.machine import Asked, Branch, Machine, Options, Retries, Transaction
from apps.transactions.coordinator.states import ENDS, Mode, Signal, State
from apps.transactions.seam import crossing
from apps.transactions.verdict import verdict
from proto.transactions.v1 import coordinator_pb2 as pb

ORPHANS_AT_ONCE: Final = 500
MAX_WAIT_S: Final = 60.0
LOG_PAUSE_S: Final = 0.2
"""Before a write that failed is tried again."""
POLL_S: Final = 0.1
"""How often a replica looks for the end of a transaction that another one sees to, while somebody waits."""
OPEN_TIMEOUT_S: Final = 30.0
"""For an initiator that gives none."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a replica behaves."""

    name: str
    """Unique among the replicas that run; a restart under the same name takes over at once what the last run left."""
    session_ttl_s: float = 3.0
    """A replica whose sign of life stands still for so long is taken to be dead."""
    call_timeout_s: float = 3.0
    max_open: int = 10_000
    """Transactions that one replica sees to; more are refused."""
    max_calls: int = 256
    """Calls at the same time."""
    keep_s: float = 7 * 86_400.0
    """Ended transactions are kept for so long after they were made; then their gid means nothing any more."""
    retries: Retries = field(default_factory=Retries)
    services: tuple[str, ...] = ANY
    """Patterns of HOST:PORT that branches may call."""


T = TypeVar("T")


class Refusal(Exception):
    """A request is refused; nothing was written."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class Calls(Protocol):
    async def call(self, target: str, body: bytes, branch: BranchCall | None, timeout_s: float) -> bytes: ...


@dataclass(slots=True)
class _Request:
    """Something to do to a machine, and who waits for it to be durable."""

    act: Callable[[Machine], None]
    done: asyncio.Future[Transaction]


class _Drive:
    """A transaction in this replica's hands."""

    def __init__(self, machine: Machine, token: int) -> None:
        self.machine = machine
        self.token = token
        self.inbox: list[_Request] = []
        self.unanswered: list[_Request] = []
        """Done to the machine, but not durable yet."""
        self.task: asyncio.Task[None] | None = None
        self.bell = asyncio.Event()
        self.is_gone = False
        self.has_written_end = False
        self.ended = asyncio.Event()
        """Set when it is over, or in other hands."""

    def ask(self, act: Callable[[Machine], None]) -> "asyncio.Future[Transaction]":
        done: asyncio.Future[Transaction] = asyncio.get_running_loop().create_future()
        if self.is_gone:
            done.set_exception(Fenced(self.machine.gid))
        else:
            self.inbox.append(_Request(act, done))
            self.bell.set()
        return done


class Engine:
    """`async with Engine(...)`: sees to its transactions until the block ends."""

    def __init__(
        self,
        log: Log,
        calls: Calls,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        dice: random.Random | None = None,
    ) -> None:
        self._log = log
        self._calls = calls
        self._settings = settings
        self._clock = clock
        self._dice = dice or random.Random()
        self._drives: dict[str, _Drive] = {}
        self._slots = asyncio.Semaphore(settings.max_calls)
        self._session = ""
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._carried: set[asyncio.Task[Any]] = set()
        self._doubtful: set[str] = set()
        """Transactions of which nobody knows whether their first write was done: the log failed."""

    async def __aenter__(self) -> "Engine":
        await self._open_session()
        await self._group.__aenter__()
        self._start(self._look_after_sessions())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in (*self._carried, *self._tasks):
            each.cancel()
        await asyncio.gather(*self._carried, return_exceptions=True)
        await self._group.__aexit__(kind, error, trace)
        with contextlib.suppress(LogUnavailable):  # then the others find out by themselves
            await self._log.end_session(self._session, None)

    # What is asked from outside.

    # `caller` is whoever asks, if anybody can tell: a transaction is its initiator's.

    async def begin(
        self, gid: str, mode: Mode, branches: tuple[Branch, ...], options: Options, caller: str = ""
    ) -> Transaction:
        """Open a transaction; the same again finds it. Raises Refusal, IllFormed, LogUnavailable."""
        if not options.timeout_s:
            options = Options(OPEN_TIMEOUT_S, options.forward_only, options.query)
        made = Transaction(gid or uuid.uuid4().hex, mode, branches, options, self._clock(), initiator=caller)
        check(made, self._settings.services)
        return await self._create(made, None)

    async def submit_whole(
        self, gid: str, mode: Mode, branches: tuple[Branch, ...], options: Options, caller: str = ""
    ) -> Transaction:
        """Take a whole transaction; the same again finds it. Raises Refusal, IllFormed, LogUnavailable."""
        gid = gid or uuid.uuid4().hex
        made = Transaction(gid, mode, branches, options, self._clock(), is_whole=True, initiator=caller)
        check(made, self._settings.services)
        return await self._create(made, Signal.SUBMITTED)

    async def add(self, gid: str, branches: tuple[Branch, ...], caller: str = "") -> Transaction:
        """Raises Refusal, IllFormed, LogUnavailable."""

        def act(machine: Machine) -> None:
            _require_right(machine.transaction, caller)
            known = {each.name: each for each in machine.transaction.branches}
            new = [each for each in branches if known.get(each.name) != each]
            if not new:
                return  # a repetition
            _raise_if_rolled_back(machine)
            if machine.state is not State.OPEN:
                raise _too_late(machine, "takes no more branches")
            check_branches(machine.transaction.mode, [*machine.transaction.branches, *new], self._settings.services)
            machine.add(new, self._clock())

        return await self._change(gid, act)

    async def submit(self, gid: str, caller: str = "") -> Transaction:
        """Decide for an open transaction. Raises Refusal, LogUnavailable."""

        def act(machine: Machine) -> None:
            _require_right(machine.transaction, caller)
            if machine.signal(Signal.SUBMITTED, "", self._clock()):
                return
            _raise_if_rolled_back(machine)

        return await self._change(gid, act)

    async def abort(self, gid: str, reason: str, caller: str = "") -> Transaction:
        """Take an undecided transaction back. Raises Refusal, LogUnavailable."""

        def act(machine: Machine) -> None:
            _require_right(machine.transaction, caller)
            if machine.state in (State.UNDOING, State.FAILED, State.ASKING):
                return
            if not machine.signal(Signal.ABORT_ASKED, reason or "abort asked", self._clock()):
                raise _too_late(machine, "cannot be taken back")

        return await self._change(gid, act)

    async def retry(self, gid: str) -> Transaction:
        """End back-offs now. Raises Refusal, LogUnavailable."""
        return await self._change(gid, lambda machine: machine.hurry(self._clock()))

    async def force(self, gid: str, reason: str) -> Transaction:
        """End a decided transaction by a person's word. Raises Refusal, LogUnavailable."""
        if not reason:
            text = "reason: is missing; say why, and who says so"
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "NO_REASON", text)

        def act(machine: Machine) -> None:
            is_decided = machine.state is not State.RUNNING or machine.transaction.is_past_return
            if not is_decided or not machine.signal(Signal.FORCED, f"forced: {reason}", self._clock()):
                raise _too_late(machine, "is not being finished or taken back, so there is nothing to force")

        return await self._change(gid, act)

    async def query(self, gid: str) -> tuple[Transaction, Record]:
        """The transaction as far as this replica knows, and its record. Raises Refusal, LogUnavailable."""
        record = await self._record(gid)
        drive = self._drives.get(gid)
        if drive is not None and drive.token == record.token:
            return drive.machine.transaction, record
        return _transaction(record), record

    async def page(
        self, states: list[State], only_dead_letters: bool, after: str, limit: int
    ) -> list[tuple[Transaction, Record]]:
        """Raises LogUnavailable."""
        records = await self._log.page(states, only_dead_letters, after, limit)
        return [(_transaction(each), each) for each in records]

    async def wait_for_end(self, gid: str, timeout_s: float) -> Transaction:
        """The transaction when it has ended, or as it stands when the time is over. Raises Refusal, LogUnavailable."""
        end = time.monotonic() + min(timeout_s, MAX_WAIT_S)
        while (left := end - time.monotonic()) > 0:
            drive = self._drives.get(gid)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left if drive is not None else min(left, POLL_S)):
                    await (drive.ended.wait() if drive is not None else asyncio.sleep(left))
            if drive is not None and drive.has_written_end:
                return drive.machine.transaction
            record = await self._record(gid)
            if record.state in ENDS:
                return _transaction(record)
        return (await self.query(gid))[0]

    # Records in this replica's hands.

    async def _create(self, made: Transaction, signal: Signal | None) -> Transaction:
        open_here = len(self._drives) + len(self._doubtful)
        if open_here >= self._settings.max_open:
            text = f"this replica sees to {open_here} transactions already; try another, or later"
            raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_OPEN", text)
        machine = Machine(made, self._settings.retries, self._dice)
        if signal is not None:
            machine.signal(signal, "", made.created_at)
        drive = _Drive(machine, 1)
        if not await self._carry_through(self._write_first(drive)):
            return await self._existing(made)
        return machine.transaction

    async def _write_first(self, drive: _Drive) -> bool:
        """Write a transaction down and take it in hand; False if the gid is there."""
        try:
            if not await self._log.create(self._record_of(drive.machine.transaction, drive.token)):
                return False
        except LogUnavailable:
            self._doubtful.add(drive.machine.gid)
            raise
        drive.machine.note_written()
        self._keep(drive)
        return True

    async def _carry_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it even if whoever asked goes away meanwhile: what is written in this session's name must be in its hands."""
        task = asyncio.ensure_future(work)
        self._carried.add(task)
        task.add_done_callback(self._carried.discard)
        return await asyncio.shield(task)

    async def _existing(self, made: Transaction) -> Transaction:
        there = _transaction(await self._record(made.gid))
        _require_right(there, made.initiator)
        asked = codec.digest(made.mode, made.branches, made.options)
        # An open transaction may have got branches since.
        branches = there.branches if made.is_whole else there.branches[: len(made.branches)]
        if there.is_whole != made.is_whole or codec.digest(there.mode, branches, there.options) != asked:
            text = f"{made.gid} stands for another transaction; choose another gid"
            raise Refusal(grpc.StatusCode.ALREADY_EXISTS, "GID_REUSED", text)
        return there

    async def _change(self, gid: str, act: Callable[[Machine], None]) -> Transaction:
        """Do something to a transaction, wherever it is; return when that is durable."""
        for _ in range(8):
            drive = self._drives.get(gid)
            if drive is None:
                record = await self._record(gid)
                if record.state in ENDS:
                    machine = Machine(_transaction(record), self._settings.retries, self._dice, is_from_log=True)
                    act(machine)
                    return machine.transaction
                drive = await self._take(record)
            try:
                if drive is not None:
                    return await drive.ask(act)
            except Fenced:
                continue
        text = f"{gid} keeps changing hands between replicas; ask again"
        raise Refusal(grpc.StatusCode.UNAVAILABLE, "CONTENDED", text)

    async def _record(self, gid: str) -> Record:
        record = await self._log.read(gid)
        if record is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "NO_SUCH_GID", f"there is no transaction {gid!r}")
        return record

    async def _take(self, record: Record) -> _Drive | None:
        """Take a record into this replica's hands; None if somebody else was faster."""
        if record.gid in self._drives:
            return self._drives[record.gid]
        return await self._carry_through(self._write_taken(record))

    async def _write_taken(self, record: Record) -> _Drive | None:
        taken = record.taken_by(self._session)
        try:
            await self._log.write(taken, record.token)
        except Fenced:
            return None
        machine = Machine(_transaction(record), self._settings.retries, self._dice, is_from_log=True)
        drive = _Drive(machine, taken.token)
        self._keep(drive)
        return drive

    def _keep(self, drive: _Drive) -> None:
        older = self._drives.get(drive.machine.gid)
        if older is not None and older.token >= drive.token:
            drive.is_gone = True
            return
        self._drives[drive.machine.gid] = drive
        metrics.OPEN.set(len(self._drives))
        drive.task = self._start(self._see_to(drive))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # One transaction's task.

    async def _see_to(self, drive: _Drive) -> None:
        machine = drive.machine
        was_dead_letter = machine.is_dead_letter
        try:
            while True:
                drive.bell.clear()
                _take_in(drive)
                step = machine.step(self._clock())
                if step.write or drive.unanswered:
                    now = machine.transaction  # an answer that comes during the write belongs to the next round
                    if step.write:
                        await self._make_durable(now, drive.token)
                    _answer(drive, now)
                    if now.is_dead_letter and not was_dead_letter:
                        metrics.DEAD_LETTERS_MADE.labels(now.mode).inc()
                    was_dead_letter = now.is_dead_letter
                    if now.state in ENDS:
                        drive.has_written_end = True
                        return self._ended(now)
                for asked in step.calls:
                    self._start(self._call(drive, asked))
                await self._sleep(drive, step.wake_at)
        except Fenced:
            metrics.FENCED.inc()
        finally:
            self._let_go(drive)

    async def _make_durable(self, transaction: Transaction, token: int) -> None:
        """Write until it is written. Raises Fenced."""
        record = self._record_of(transaction, token)
        while True:
            try:
                return await self._log.write(record, token)
            except LogUnavailable:
                await asyncio.sleep(LOG_PAUSE_S)

    async def _call(self, drive: _Drive, asked: Asked) -> None:
        machine = drive.machine
        branch = "query" if asked.index < 0 else machine.transaction.branches[asked.index].name
        call = BranchCall(machine.gid, branch, asked.op)
        async with self._slots:
            result, message = await self._ask(call, asked)
        metrics.CALLS.labels(asked.op, result.value).inc()
        machine.answered(asked, result, message, self._clock())
        drive.bell.set()

    async def _ask(self, call: BranchCall, asked: Asked) -> tuple[Verdict, str]:
        try:
            with crossing("send", f"call {call.branch}/{call.op}"):
                await self._calls.call(asked.call.target, asked.call.body, call, self._settings.call_timeout_s)
        except grpc.aio.AioRpcError as error:
            message = error.details() or ""
            return verdict(error.code(), message), f"{error.code().name}: {message}"
        return Verdict.DONE, ""

    async def _sleep(self, drive: _Drive, wake_at: float | None) -> None:
        """Until something happens, or it is time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if wake_at is None else max(0.0, wake_at - self._clock())):
                await drive.bell.wait()

    def _ended(self, transaction: Transaction) -> None:
        metrics.ENDED.labels(transaction.mode, transaction.state).inc()
        lasted = max(0.0, transaction.ended_at - transaction.created_at)
        metrics.LASTED.labels(transaction.mode, transaction.state).observe(lasted)

    def _let_go(self, drive: _Drive) -> None:
        drive.is_gone = True
        for request in (*drive.unanswered, *drive.inbox):
            if not request.done.done():
                request.done.set_exception(Fenced(drive.machine.gid))
        if self._drives.get(drive.machine.gid) is drive:
            del self._drives[drive.machine.gid]
        metrics.OPEN.set(len(self._drives))
        drive.ended.set()

    # Replicas.

    async def _open_session(self) -> None:
        self._session = f"{self._settings.name}:{uuid.uuid4().hex[:12]}"
        await self._log.open_session(self._session, self._settings.name)

    async def _look_after_sessions(self) -> None:
        """Give signs of life, notice the death of others, take over what they left."""
        seen: dict[str, tuple[int, float]] = {}
        next_forget = 0.0
        while True:
            try:
                await self._bury(seen)
                await self._adopt()
                metrics.DEAD_LETTERS.set(sum(each.machine.is_dead_letter for each in self._drives.values()))
                if time.monotonic() >= next_forget:
                    next_forget = time.monotonic() + 60.0
                    await self._log.forget(self._clock() - self._settings.keep_s, 1000)
                await asyncio.sleep(self._settings.session_ttl_s / 3)
                await self._log.beat(self._session)
            except SessionLost:
                self._drop_everything()
                await self._reopen()
            except LogUnavailable:
                await asyncio.sleep(LOG_PAUSE_S)

    async def _bury(self, seen: dict[str, tuple[int, float]]) -> None:
        now = time.monotonic()
        beats = await self._log.sessions()
        for session in seen.keys() - beats.keys():
            del seen[session]
        for session, beat in beats.items():
            known = seen.get(session)
            if known is None or known[0] != beat:
                seen[session] = (beat, now)
            elif session != self._session and now - known[1] >= self._settings.session_ttl_s:
                await self._log.end_session(session, beat)

    async def _adopt(self) -> None:
        for gid in list(self._doubtful):
            record = await self._log.read(gid)
            if record is not None and record.owner == self._session and record.state not in ENDS:
                await self._take(record)
            self._doubtful.discard(gid)
        while True:
            room = self._settings.max_open - len(self._drives)
            orphans = await self._log.orphans(min(ORPHANS_AT_ONCE, room)) if room > 0 else ()
            taken = await asyncio.gather(*(self._take(each) for each in orphans))
            metrics.TAKEN_OVER.inc(sum(each is not None for each in taken))
            if not any(taken):
                return

    async def _reopen(self) -> None:
        while True:
            try:
                return await self._open_session()
            except LogUnavailable:
                await asyncio.sleep(LOG_PAUSE_S)

    def _drop_everything(self) -> None:
        """The others have taken this replica to be dead; what is left in its hands is an orphan now, and can be taken again."""
        for drive in list(self._drives.values()):
            if drive.task is not None:
                drive.task.cancel()
            self._let_go(drive)

    def _record_of(self, transaction: Transaction, token: int) -> Record:
        return Record(
            transaction.gid,
            transaction.state,
            transaction.is_dead_letter,
            self._session,
            token,
            transaction.created_at,
            codec.to_message(transaction, token, self._session).SerializeToString(),
        )


def _transaction(record: Record) -> Transaction:
    return codec.from_message(pb.Transaction.FromString(record.value))


def _require_right(transaction: Transaction, caller: str) -> None:
    if transaction.initiator and transaction.initiator != caller:
        text = f'{transaction.gid} was begun by somebody else, and not by "{caller}"; choose another gid'
        raise Refusal(grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS", text)


def _too_late(machine: Machine, what: str) -> Refusal:
    return Refusal(grpc.StatusCode.FAILED_PRECONDITION, "DECIDED", f"{machine.gid} is {machine.state}: it {what}")


def _raise_if_rolled_back(machine: Machine) -> None:
    if machine.state in (State.UNDOING, State.FAILED):
        text = f"{machine.gid} was taken back: {machine.transaction.reason}"
        raise Refusal(grpc.StatusCode.ABORTED, "ROLLED_BACK", text)


def _take_in(drive: _Drive) -> None:
    """Do what was asked; a refusal is answered at once, everything else behind the write."""
    requests, drive.inbox = drive.inbox, []
    for request in requests:
        try:
            request.act(drive.machine)
        except (Refusal, IllFormed) as refusal:
            if not request.done.done():
                request.done.set_exception(refusal)
        else:
            drive.unanswered.append(request)


def _answer(drive: _Drive, transaction: Transaction) -> None:
    requests, drive.unanswered = drive.unanswered, []
    for request in requests:
        if not request.done.done():
            request.done.set_result(transaction)
