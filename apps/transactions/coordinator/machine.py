"""One transaction, from its first write to its end. Decides what to write, whom to call and when; does none of it.

Theory of operation. `step(now)` says what must be durable first, who is to be called then, and when to step again if nothing happens
before. The caller writes, calls, and reports with `answered`; what happens from outside comes with `signal`. Same input, same output:
the time and the dice are passed in.

Writes are dear, so there are few: one when the transaction comes, one for every decision, one at its end, one before the step that has
no way back. That a branch is done is not written: after a crash it is called again, and the participant's barrier repeats its answer.
For the same reason a machine that comes from the log, and not from a request, takes every branch to have been called; an undo of what
never was is empty, and keeps a late call out.

`now` is seconds since 1970, since deadlines outlive the process. A clock that jumps makes a deadline early or late, and nothing else.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from apps.transactions.context import Op, Verdict
from apps.transactions.coordinator.states import ENDS, OPS, TRANSITIONS, BranchState, Mode, Signal, State

QUERY_INDEX: Final = -1
"""Stands for the question to the initiator where a branch's index is meant."""
MAX_EVENTS: Final = 60
"""Of one transaction that are kept: beyond it, those in the middle go."""
MAX_ERROR: Final = 300
"""Characters of a participant's message that are kept."""


@dataclass(frozen=True, slots=True)
class Call:
    """Where, and with which serialised request."""

    target: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Branch:
    name: str
    after: tuple[str, ...] = ()
    forward: Call | None = None
    """None: the initiator sees to it before it submits."""
    finish: Call | None = None
    undo: Call | None = None
    cannot_be_undone: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    timeout_s: float = 0.0
    """After which an undecided transaction is taken back. 0: never."""
    forward_only: bool = False
    query: Call | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    state: BranchState = BranchState.WAITING
    attempts: int = 0
    """Calls in a row that brought no result."""
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for people who look later."""

    at: float
    what: str
    branch: str = ""
    op: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Transaction:
    """What the log keeps."""

    gid: str
    mode: Mode
    branches: tuple[Branch, ...]
    options: Options
    created_at: float
    state: State = State.OPEN
    progress: tuple[Progress, ...] = ()
    reason: str = ""
    ended_at: float = 0.0
    is_dead_letter: bool = False
    is_past_return: bool = False
    is_whole: bool = False
    query: Progress = Progress()
    initiator: str = ""
    """Who began it; empty: nobody knows, and anybody may go on with it."""
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Retries:
    """When a call that brought no result is repeated."""

    first_s: float = 0.2
    """After the first failure; doubles with each, up to `most_s`."""
    most_s: float = 30.0
    jitter: float = 0.5
    """Up to this part of a pause is taken off by chance, so that those who failed together do not come back together."""
    ongoing_s: float = 0.5
    """Before a participant that said ONGOING is asked again."""
    dead_after: int = 10
    """Failures in a row that make a dead letter: the alarm goes off, and the call is repeated every `most_s`."""

    def pause_s(self, failures: int, dice: random.Random) -> float:
        whole = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 32))
        return whole * (1.0 - self.jitter * dice.random())


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that is to be made."""

    index: int
    op: Op
    call: Call


@dataclass(frozen=True, slots=True)
class Step:
    write: bool
    """Make `transaction` durable before anything else is done, and before anybody is answered."""
    calls: tuple[Asked, ...]
    wake_at: float | None


@dataclass(slots=True)
class _Branch:
    """What changes about a branch."""

    index: int
    spec: Branch
    state: BranchState
    attempts: int = 0
    last_error: str = ""
    next_at: float = 0.0
    in_flight: set[Op] = field(default_factory=set)


class Machine:
    """Not safe for several threads."""

    def __init__(
        self, transaction: Transaction, retries: Retries, dice: random.Random, *, is_from_log: bool = False
    ) -> None:
        self.gid = transaction.gid
        self._fixed = transaction
        self._retries = retries
        self._dice = dice
        self.state = transaction.state
        self.is_dead_letter = transaction.is_dead_letter
        self._is_past_return = transaction.is_past_return
        self._reason = transaction.reason
        self._ended_at = transaction.ended_at
        known = transaction.progress or (Progress(),) * len(transaction.branches)
        self._branches = [
            _Branch(index, spec, each.state, each.attempts, each.last_error)
            for index, (spec, each) in enumerate(zip(transaction.branches, known, strict=True))
        ]
        if is_from_log and self.state is State.RUNNING:
            self._suspect_calls()
        self._query = _Branch(QUERY_INDEX, Branch("query"), BranchState.WAITING, transaction.query.attempts)
        self._is_dirty = not is_from_log
        self._events = list(transaction.events)

    @property
    def transaction(self) -> Transaction:
        """As it stands."""
        return replace(
            self._fixed,
            branches=tuple(each.spec for each in self._branches),
            state=self.state,
            progress=tuple(Progress(each.state, each.attempts, each.last_error) for each in self._branches),
            reason=self._reason,
            ended_at=self._ended_at,
            is_dead_letter=self.is_dead_letter,
            is_past_return=self._is_past_return,
            query=Progress(attempts=self._query.attempts, last_error=self._query.last_error),
            events=tuple(self._events),
        )

    @property
    def is_over(self) -> bool:
        return self.state in ENDS

    @property
    def ops(self) -> tuple[Op | None, Op | None, Op | None]:
        """Forward, finish, undo."""
        each = OPS[self._fixed.mode]
        return each.forward, each.finish, each.undo

    def note_written(self) -> None:
        """`transaction` is durable as it stands."""
        self._is_dirty = False

    def add(self, branches: Sequence[Branch], now: float) -> None:
        """More branches, while it is open."""
        if self.state is not State.OPEN:
            raise ValueError(f"{self.gid} is {self.state}; only an open transaction takes branches")
        start = len(self._branches)
        self._branches += [_Branch(start + number, each, BranchState.WAITING) for number, each in enumerate(branches)]
        for each in branches:
            self._note(now, "added", each.name)
        self._is_dirty = True

    def signal(self, signal: Signal, reason: str, now: float) -> bool:
        """Something happened. False: it changes nothing in this state."""
        if signal in (Signal.ABORT_ASKED, Signal.TIME_OVER, Signal.REFUSED) and not self._may_turn_back():
            return False
        new = TRANSITIONS[self._fixed.mode].get((self.state, signal))
        if new is None:
            return False
        if signal is Signal.SUBMITTED:
            for each in self._branches:
                if each.spec.forward is None:  # the initiator says so
                    each.state = BranchState.DONE
        elif self.state is State.OPEN:
            self._suspect_calls()
        self.state = new
        self._reason = reason or self._reason
        self._note(now, signal.value, message=reason)
        self._is_dirty = True
        for each in (*self._branches, self._query):
            each.attempts, each.next_at = 0, now
        if self.is_over:
            self._ended_at = now
            self.is_dead_letter = False
        return True

    def hurry(self, now: float) -> None:
        """End all back-offs."""
        self._is_dirty = self._is_dirty or self.is_dead_letter
        self.is_dead_letter = False
        for each in (*self._branches, self._query):
            each.attempts, each.next_at = 0, now

    def step(self, now: float) -> Step:
        """What to do now."""
        deadline = self._deadline()
        if deadline is not None and deadline <= now:
            self.signal(Signal.TIME_OVER, "time over", now)
        while self._advance(now):
            pass
        wanted = self._wanted()
        calls = tuple(asked for branch, asked in wanted if branch.next_at <= now)
        for branch, asked in wanted:
            if branch.next_at <= now:
                self._note_call(branch, asked)
                self._note(now, "call", branch.spec.name, asked.op)
        later = [branch.next_at for branch, _ in wanted if branch.next_at > now]
        deadline = self._deadline()
        if deadline is not None:
            later.append(deadline)
        write, self._is_dirty = self._is_dirty, False
        return Step(write, calls, min(later, default=None))

    def answered(self, asked: Asked, verdict: Verdict, message: str, now: float) -> None:
        """A call that `step` asked for came back."""
        branch = self._query if asked.index == QUERY_INDEX else self._branches[asked.index]
        branch.in_flight.discard(asked.op)
        self._note(now, verdict.value, branch.spec.name, asked.op, message)
        if asked.op not in self._current_ops():
            return  # an answer to what is no longer asked: the barrier has seen to it
        match verdict:
            case Verdict.ONGOING:
                branch.next_at = now + self._retries.ongoing_s
            case Verdict.DONE:
                self._succeeded(branch, asked.op, now)
            case Verdict.REFUSED if asked.op is Op.QUERY:
                self.signal(Signal.NEVER_COMMITTED, message, now)
            case Verdict.REFUSED if self.state is State.RUNNING and self._may_be_refused(branch):
                branch.state = BranchState.REFUSED
                branch.last_error = message[:MAX_ERROR]
                self._is_past_return = False  # only the one step without a way back was called, and it was not done
                self.signal(Signal.REFUSED, f"{branch.spec.name}: {message[:MAX_ERROR]}", now)
            case _:
                self._failed(branch, message, now)

    def _note(self, now: float, what: str, branch: str = "", op: str = "", message: str = "") -> None:
        """For people: decides nothing, and is worth no write of its own."""
        self._events.append(Event(now, what, branch, op, message[:MAX_ERROR]))
        if len(self._events) > MAX_EVENTS:
            del self._events[MAX_EVENTS // 2]

    # What happens to a branch.

    def _suspect_calls(self) -> None:
        """Take branches to have been called that somebody else may have called."""
        for each in self._branches:
            if each.state is BranchState.WAITING and not each.spec.cannot_be_undone:
                each.state = BranchState.CALLED

    def _succeeded(self, branch: _Branch, op: Op, now: float) -> None:
        branch.attempts, branch.last_error = 0, ""
        forward, finish, undo = self.ops
        if op is Op.QUERY:
            self.signal(Signal.COMMITTED, "the initiator says that it committed", now)
        elif op is forward:
            branch.state = BranchState.DONE
        elif op is finish:
            branch.state = BranchState.FINISHED
        elif op is undo:
            branch.state = BranchState.UNDONE
        if self.is_dead_letter and all(each.attempts < self._retries.dead_after for each in self._branches):
            self.is_dead_letter = False
            self._is_dirty = True

    def _failed(self, branch: _Branch, message: str, now: float) -> None:
        branch.attempts += 1
        branch.last_error = message[:MAX_ERROR]
        if branch.attempts < self._retries.dead_after:
            branch.next_at = now + self._retries.pause_s(branch.attempts, self._dice)
            return
        branch.next_at = now + self._retries.pause_s(64, self._dice)
        if not self.is_dead_letter:
            self.is_dead_letter = True
            self._is_dirty = True

    def _note_call(self, branch: _Branch, asked: Asked) -> None:
        branch.in_flight.add(asked.op)
        if asked.op is self.ops[0] and branch.state is BranchState.WAITING:
            branch.state = BranchState.CALLED
        if branch.spec.cannot_be_undone and not self._is_past_return:
            self._is_past_return = True
            self._is_dirty = True

    # What is true of the whole.

    def _may_turn_back(self) -> bool:
        return not self._is_past_return and not (self._fixed.options.forward_only and self.state is State.RUNNING)

    def _may_be_refused(self, branch: _Branch) -> bool:
        """Whether a refusal of this branch can still lead back."""
        others = [each for each in self._branches if each is not branch and each.spec.cannot_be_undone]
        has_passed = any(each.state is BranchState.DONE for each in others)
        return not self._fixed.options.forward_only and not has_passed

    def _deadline(self) -> float | None:
        if self.state not in (State.OPEN, State.RUNNING) or not self._fixed.options.timeout_s:
            return None
        return self._fixed.created_at + self._fixed.options.timeout_s if self._may_turn_back() else None

    def _current_ops(self) -> tuple[Op | None, ...]:
        forward, finish, undo = self.ops
        match self.state:
            case State.RUNNING:
                return (forward,)
            case State.FINISHING:
                return (finish,)
            case State.UNDOING:
                return (undo,)
            case State.ASKING:
                return (Op.QUERY,)
        return ()

    def _advance(self, now: float) -> bool:
        """Go on if nothing is left to do in this state."""
        match self.state:
            case State.RUNNING if all(_is_done(each) for each in self._branches):
                return self.signal(Signal.ALL_DONE, "", now)
            case State.FINISHING if all(_is_finished(each) for each in self._branches):
                return self.signal(Signal.ALL_FINISHED, "", now)
            case State.UNDOING if all(_is_undone(each) for each in self._branches):
                return self.signal(Signal.ALL_UNDONE, "", now)
        return False

    def _wanted(self) -> list[tuple[_Branch, Asked]]:
        """The calls that may be made in this state, but for back-off."""
        forward, finish, undo = self.ops
        match self.state:
            case State.RUNNING if forward is not None:
                chosen = [(branch, forward, branch.spec.forward) for branch in self._ready_forward()]
            case State.FINISHING if finish is not None:
                chosen = [(branch, finish, branch.spec.finish) for branch in self._ready(_is_finished)]
            case State.UNDOING if undo is not None:
                chosen = [(branch, undo, branch.spec.undo) for branch in self._ready_undo()]
            case State.ASKING:
                chosen = [(self._query, Op.QUERY, self._fixed.options.query)]
            case _:
                chosen = []
        return [
            (branch, Asked(branch.index, op, call))
            for branch, op, call in chosen
            if call is not None and op not in branch.in_flight
        ]

    def _ready_forward(self) -> list[_Branch]:
        ready = self._ready(_is_done)
        if not all(_is_done(each) for each in self._branches if not each.spec.cannot_be_undone):
            return [each for each in ready if not each.spec.cannot_be_undone]
        return ready[:1]  # those without a way back go one by one

    def _ready(self, is_settled: Callable[[_Branch], bool]) -> list[_Branch]:
        settled = {each.spec.name for each in self._branches if is_settled(each)}
        return [each for each in self._branches if not is_settled(each) and settled.issuperset(each.spec.after)]

    def _ready_undo(self) -> list[_Branch]:
        """In the reverse order of the graph: first what came after."""
        left = [each for each in self._branches if not _is_undone(each)]
        waited_for = {name for each in left for name in each.spec.after}
        waited_for |= self._ancestors(waited_for)
        return [each for each in left if each.spec.name not in waited_for]

    def _ancestors(self, names: set[str]) -> set[str]:
        found: set[str] = set()
        new = names
        while new:
            new = {up for each in self._branches if each.spec.name in new for up in each.spec.after} - found
            found |= new
        return found


def _is_done(branch: _Branch) -> bool:
    return branch.state in (BranchState.DONE, BranchState.FINISHED)


def _is_finished(branch: _Branch) -> bool:
    return branch.spec.finish is None or branch.state is BranchState.FINISHED


def _is_undone(branch: _Branch) -> bool:
    return branch.spec.undo is None or branch.state in (BranchState.UNDONE, BranchState.WAITING)
