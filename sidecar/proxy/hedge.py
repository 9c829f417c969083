"""Hedging: further tries beside the one that runs, when it has not answered for a while; the first answer counts, the others are cancelled.

A rival is a call of its own as far as cluster, endpoint and connection are concerned. The client's stream knows nothing of it: when a rival is
answered, the call takes its place. Only for calls whose policy says that to process them twice does no harm.
"""

from typing import TYPE_CHECKING

from sidecar.http2.frames import ErrorCode
from sidecar.proxy.call import Call

if TYPE_CHECKING:
    from sidecar.proxy.attempts import Retry
    from sidecar.proxy.status import Status
    from sidecar.proxy.upstream import Block


class Rival(Call):
    """A try beside the call's own."""

    def __init__(self, main: Call) -> None:
        super().__init__(main.down, main.down_stream, main.plan, main.started, True)
        self.main = main
        self.is_rival = True
        self.body = list(main.body) if main.body else None
        self.body_size = main.body_size
        self.trailers = main.trailers
        self.cluster = main.cluster
        self.load = main.load
        self.wish = main.wish

    def answer(self, status: "Status", message: str, flag: str, http_status: int = 0, fields: bytes = b"") -> None:
        """It came to nothing, and nobody needs to know."""
        self.finish(status, flag)

    def finish(self, status: int, flag: str) -> None:
        """It is over, and was not the one."""
        if not self.is_done:
            self.leave()
            self.detach(ErrorCode.CANCEL)
            self.endpoint = None

    def leave(self) -> None:
        """It counts no more."""
        self.is_done = True
        if self.load is not None:
            self.load.active -= 1
            self.load.retrying -= 1
        attempts = self.main.attempts
        if attempts is not None and self in attempts.rivals:
            attempts.rivals.remove(self)


def begin(call: Call, retry: "Retry") -> None:
    """Begin one more try of a call, somewhere else if that is possible."""
    from sidecar.proxy.attempts import Attempts

    assert call.attempts is not None and call.cluster is not None and call.load is not None
    rival = Rival(call)
    own = Attempts(rival, retry)
    rival.attempts = own
    others = [call, *call.attempts.rivals]
    own.tried = [other.endpoint for other in others if other.endpoint is not None]
    own.redraws = max(own.redraws, 2 * len(own.tried))
    call.attempts.rivals.append(rival)
    call.load.retrying += 1
    call.load.active += 1
    call.cluster.worker.stats.count_retry(call.cluster.label, "hedge")
    call.cluster.begin_try(rival)


def win(rival: Call, block: "Block") -> Call | None:
    """A rival is answered: the call, in whose place it steps; None if the answer is one for which it would be tried again."""
    assert isinstance(rival, Rival)
    retry = rival.plan.decision.retry
    if retry is not None and retry.rules.takes(block.http_status, block.status):
        rival.finish(block.status, "")
        return None
    return _take_place(rival)


def step_in(call: Call) -> bool:
    """The call's own try came to nothing: one that runs beside it takes its place; False if there is none."""
    assert call.attempts is not None
    for rival in call.attempts.rivals:
        if rival.up_stream is not None and isinstance(rival, Rival):
            _take_place(rival)
            return True
    return False


def _take_place(rival: Rival) -> Call:
    call = rival.main
    attempts = call.attempts
    assert attempts is not None and call.load is not None and rival.up_stream is not None
    if attempts.is_waiting:
        attempts.is_waiting = False
        attempts.deadline = 0.0
        call.load.active += 1
    else:
        call.detach(ErrorCode.CANCEL)
    call.endpoint, call.up, call.up_stream = rival.endpoint, rival.up, rival.up_stream
    call.up_stream.call = call
    call.sent_at = rival.sent_at
    rival.endpoint = rival.up = rival.up_stream = None
    rival.leave()
    return call


def cancel(rivals: list[Call]) -> None:
    """There is an answer, or nobody waits for one."""
    for rival in list(rivals):
        if isinstance(rival, Rival):
            rival.finish(0, "")
