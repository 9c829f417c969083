"""The classic breaker of a cluster at work: asked before a call, told after it."""

from typing import TYPE_CHECKING

from sidecar.policy.breaker import Breaker
from sidecar.policy.outlier import HTTP_OF_GRPC, SERVER_ERROR
from sidecar.proxy.status import NOT_GRPC, Status

if TYPE_CHECKING:
    from sidecar.proxy.call import Call

_SAY_NOTHING = frozenset(("DC", "UO"))
"""Response flags of calls that say nothing of the service: the caller went away, or it was never called."""


def enter(breaker: Breaker, call: "Call") -> bool:
    """Let a call pass, or answer it; False if it was answered."""
    now = call.down.worker.now
    era = breaker.enter(now)
    if era < 0:
        if not breaker.config.is_enforced:
            return True
        name = call.cluster.name if call.cluster is not None else "?"
        text = f'circuit breaker open: "{name}": {breaker.explain(now)} (flag UO)'
        call.answer(Status.UNAVAILABLE, text, "UO")
        return False
    if call.held is None:
        call.held = []
    call.held.append((breaker, era))
    return True


def leave(breaker: Breaker, call: "Call", status: int, flag: str) -> None:
    """A call is over, with this gRPC status and response flag."""
    for holder, era in call.held or ():
        if holder is breaker and isinstance(era, int):
            if flag.partition(",")[0] in _SAY_NOTHING:
                breaker.cancel(era)
            else:
                now = call.down.worker.now
                breaker.leave(era, _is_failure(call, status), now - call.started, now)


def _is_failure(call: "Call", status: int) -> bool:
    if status >= NOT_GRPC:
        return not 0 < call.http_status < SERVER_ERROR
    return HTTP_OF_GRPC[status] >= SERVER_ERROR
