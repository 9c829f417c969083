"""A transaction as the message of proto/transactions: what the API shows is what the log keeps."""

import hashlib
from collections.abc import Iterable
from typing import Final

from apps.transactions.coordinator.machine import Branch, Call, Event, Options, Progress, Transaction
from apps.transactions.coordinator.states import BranchState, Mode, State
from proto.transactions.v1 import coordinator_pb2 as pb

_MODES: Final = {mode: pb.Mode.Value(mode.name) for mode in Mode}
_STATES: Final = {state: pb.State.Value(state.name) for state in State}
_BRANCH_STATES: Final = {state: pb.BranchState.Value(state.name) for state in BranchState}
_MODES_BACK: Final[dict[int, Mode]] = {int(number): mode for mode, number in _MODES.items()}
_STATES_BACK: Final[dict[int, State]] = {int(number): state for state, number in _STATES.items()}
_BRANCH_STATES_BACK: Final[dict[int, BranchState]] = {int(number): state for state, number in _BRANCH_STATES.items()}


def mode_of(number: int) -> Mode | None:
    """None for what this version does not know."""
    return _MODES_BACK.get(number)


def state_of(number: int) -> State | None:
    """None for what this version does not know."""
    return _STATES_BACK.get(number)


def to_message(transaction: Transaction, token: int = 0, owner: str = "") -> pb.Transaction:
    """For the API and the log."""
    return pb.Transaction(
        gid=transaction.gid,
        mode=_MODES[transaction.mode],
        state=_STATES[transaction.state],
        branches=[_branch_message(each) for each in transaction.branches],
        options=_options_message(transaction.options),
        progress=[_progress_message(each) for each in transaction.progress],
        reason=transaction.reason,
        created_at=transaction.created_at,
        ended_at=transaction.ended_at,
        is_dead_letter=transaction.is_dead_letter,
        is_past_return=transaction.is_past_return,
        token=token,
        owner=owner,
        is_whole=transaction.is_whole,
        initiator=transaction.initiator,
        events=[
            pb.Event(at=each.at, what=each.what, branch=each.branch, op=each.op, message=each.message)
            for each in transaction.events
        ],
    )


def from_message(message: pb.Transaction) -> Transaction:
    """Raises KeyError for a mode or state that this version does not know."""
    return Transaction(
        gid=message.gid,
        mode=_MODES_BACK[message.mode],
        branches=branches_of(message.branches),
        options=options_of(message.options),
        created_at=message.created_at,
        state=_STATES_BACK[message.state],
        progress=tuple(
            Progress(_BRANCH_STATES_BACK[each.state], each.attempts, each.last_error) for each in message.progress
        ),
        reason=message.reason,
        ended_at=message.ended_at,
        is_dead_letter=message.is_dead_letter,
        is_past_return=message.is_past_return,
        is_whole=message.is_whole,
        initiator=message.initiator,
        events=tuple(Event(each.at, each.what, each.branch, each.op, each.message) for each in message.events),
    )


def branches_of(messages: Iterable[pb.Branch]) -> tuple[Branch, ...]:
    return tuple(
        Branch(
            name=each.name,
            after=tuple(each.after),
            forward=_call_of(each.forward) if each.HasField("forward") else None,
            finish=_call_of(each.finish) if each.HasField("finish") else None,
            undo=_call_of(each.undo) if each.HasField("undo") else None,
            cannot_be_undone=each.cannot_be_undone,
        )
        for each in messages
    )


def options_of(message: pb.Options) -> Options:
    query = _call_of(message.query) if message.HasField("query") else None
    return Options(message.timeout_s, message.forward_only, query)


def digest(mode: Mode, branches: tuple[Branch, ...], options: Options) -> bytes:
    """The same for the same request: tells a repetition from a gid that stands for something else."""
    parts = [mode.encode(), _options_message(options).SerializeToString(deterministic=True)]
    parts += [_branch_message(each).SerializeToString(deterministic=True) for each in branches]
    return hashlib.sha256(b"".join(len(each).to_bytes(4, "big") + each for each in parts)).digest()


def branch_digest(branch: Branch) -> bytes:
    """The same for the same branch."""
    return hashlib.sha256(_branch_message(branch).SerializeToString(deterministic=True)).digest()


def _branch_message(branch: Branch) -> pb.Branch:
    message = pb.Branch(name=branch.name, after=branch.after, cannot_be_undone=branch.cannot_be_undone)
    for field, call in (
        (message.forward, branch.forward),
        (message.finish, branch.finish),
        (message.undo, branch.undo),
    ):
        if call is not None:
            field.target, field.body = call.target, call.body
    return message


def _options_message(options: Options) -> pb.Options:
    message = pb.Options(timeout_s=options.timeout_s, forward_only=options.forward_only)
    if options.query is not None:
        message.query.target, message.query.body = options.query.target, options.query.body
    return message


def _progress_message(progress: Progress) -> pb.Progress:
    return pb.Progress(state=_BRANCH_STATES[progress.state], attempts=progress.attempts, last_error=progress.last_error)


def _call_of(message: pb.Call) -> Call:
    return Call(message.target, message.body)
