"""What a transaction can be, and what leads from one state to the next: data, one table a mode.

The rules of the tables:

- two ends, SUCCEEDED and FAILED; from an end nothing leads away;
- FINISHING and UNDOING are decisions: nothing leads from one to the other, and a decision is in the log before anybody is called for it;
- before a decision, silence is a no: TIME_OVER leads to UNDOING (XA calls that presumed abort), except for a message, whose initiator
  may have committed, and is asked.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from apps.transactions.context import Op


class Mode(StrEnum):
    SAGA = "saga"
    TCC = "tcc"
    XA = "xa"
    MESSAGE = "message"


class State(StrEnum):
    OPEN = "open"
    ASKING = "asking"
    RUNNING = "running"
    FINISHING = "finishing"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


ENDS: Final = frozenset({State.SUCCEEDED, State.FAILED})


class Signal(StrEnum):
    """What happens to a transaction."""

    SUBMITTED = "submitted"
    ABORT_ASKED = "abort asked"
    TIME_OVER = "time over"
    REFUSED = "refused"
    COMMITTED = "committed"
    NEVER_COMMITTED = "never committed"
    ALL_DONE = "all done"
    ALL_FINISHED = "all finished"
    ALL_UNDONE = "all undone"
    FORCED = "forced"


class BranchState(StrEnum):
    WAITING = "waiting"
    CALLED = "called"
    """A forward call may have reached it."""
    DONE = "done"
    REFUSED = "refused"
    FINISHED = "finished"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class Ops:
    """What the coordinator asks of a branch in each phase."""

    forward: Op | None
    finish: Op | None
    undo: Op | None


OPS: Final = {
    Mode.SAGA: Ops(Op.ACTION, None, Op.COMPENSATE),
    Mode.TCC: Ops(Op.TRY, Op.CONFIRM, Op.CANCEL),
    Mode.XA: Ops(Op.PREPARE, Op.COMMIT, Op.ROLLBACK),
    Mode.MESSAGE: Ops(None, Op.DELIVER, None),
}

_TWO_PHASES: Final = {
    (State.OPEN, Signal.SUBMITTED): State.RUNNING,
    (State.OPEN, Signal.ABORT_ASKED): State.UNDOING,
    (State.OPEN, Signal.TIME_OVER): State.UNDOING,
    (State.RUNNING, Signal.REFUSED): State.UNDOING,
    (State.RUNNING, Signal.ABORT_ASKED): State.UNDOING,
    (State.RUNNING, Signal.TIME_OVER): State.UNDOING,
    (State.RUNNING, Signal.ALL_DONE): State.FINISHING,
    (State.FINISHING, Signal.ALL_FINISHED): State.SUCCEEDED,
    (State.FINISHING, Signal.FORCED): State.SUCCEEDED,
    (State.UNDOING, Signal.ALL_UNDONE): State.FAILED,
    (State.UNDOING, Signal.FORCED): State.FAILED,
}
TRANSITIONS: Final = {
    Mode.TCC: _TWO_PHASES,
    Mode.XA: _TWO_PHASES,
    Mode.SAGA: {
        (State.OPEN, Signal.SUBMITTED): State.RUNNING,
        (State.OPEN, Signal.ABORT_ASKED): State.FAILED,
        (State.OPEN, Signal.TIME_OVER): State.FAILED,
        (State.RUNNING, Signal.REFUSED): State.UNDOING,
        (State.RUNNING, Signal.ABORT_ASKED): State.UNDOING,
        (State.RUNNING, Signal.TIME_OVER): State.UNDOING,
        (State.RUNNING, Signal.ALL_DONE): State.SUCCEEDED,
        (State.RUNNING, Signal.FORCED): State.SUCCEEDED,
        (State.UNDOING, Signal.ALL_UNDONE): State.FAILED,
        (State.UNDOING, Signal.FORCED): State.FAILED,
    },
    Mode.MESSAGE: {
        (State.OPEN, Signal.SUBMITTED): State.FINISHING,
        (State.OPEN, Signal.ABORT_ASKED): State.ASKING,
        (State.OPEN, Signal.TIME_OVER): State.ASKING,
        (State.ASKING, Signal.SUBMITTED): State.FINISHING,
        (State.ASKING, Signal.COMMITTED): State.FINISHING,
        (State.ASKING, Signal.NEVER_COMMITTED): State.FAILED,
        (State.FINISHING, Signal.ALL_FINISHED): State.SUCCEEDED,
        (State.FINISHING, Signal.FORCED): State.SUCCEEDED,
    },
}


def diagram(mode: Mode) -> str:
    """The table as a Mermaid picture, for the page that explains it."""
    lines = [f"    {old} --> {new}: {signal}" for (old, signal), new in TRANSITIONS[mode].items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> open", *lines, ""])
