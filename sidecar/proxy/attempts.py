"""The tries of a call: when one came to nothing, whether there is another, when, and how its end is told.

A call whose first try is answered pays one look at its decision for all of this; `Attempts` are made when they are needed.
"""

from time import monotonic, time
from typing import TYPE_CHECKING, Final

from sidecar.http2.frames import ErrorCode
from sidecar.policy import retry as policy
from sidecar.policy.retry import NEVER, Backoff, Cause, Rules
from sidecar.proxy.config import RetryPolicy
from sidecar.proxy.outlier import TOO_LATE, UNREACHABLE
from sidecar.proxy.route import header_holds
from sidecar.proxy.status import Status
from sidecar.proxy.timers import Timed

if TYPE_CHECKING:
    from sidecar.proxy.call import Call
    from sidecar.proxy.cluster import Endpoint
    from sidecar.proxy.upstream import Block

SHORTEST_TRY_S: Final = 0.015
"""A try that would have less than this of the call's time is not made: the timers may be a slot late."""


class Retry:
    """A route's retry policy in force: the same for all calls of a decision."""

    def __init__(self, config: RetryPolicy) -> None:
        self.config = config
        self.rules = Rules(config.on, config.status_codes)
        self.reads_answers = self.rules.reads_answers
        self.times_tries = config.per_try_timeout_s > 0.0 or config.per_try_idle_timeout_s > 0.0 or config.hedges > 0
        """A try has a time of its own, beside the call's."""


class Attempts(Timed):
    """What a call carries that is tried more than once, or whose tries have a time of their own."""

    __slots__ = (
        "_backoff",
        "_call",
        "_hedge_at",
        "_hedges",
        "_idle_from",
        "_left",
        "_retry",
        "_try_until",
        "flags",
        "is_counted",
        "is_waiting",
        "redraws",
        "rivals",
        "tried",
    )

    def __init__(self, call: "Call", retry: Retry) -> None:
        config = retry.config
        self.deadline = 0.0
        self.tried: list[Endpoint] = []
        """Where it failed."""
        self.redraws = config.host_selection_attempts if config.avoid_previous_hosts else 0
        """How often to draw again for an endpoint that is not in `tried`."""
        self.flags = ""
        """Envoy's response flags that say how trying ended."""
        self.is_waiting = False
        """No try runs; the next one comes when the back-off is over."""
        self.is_counted = False
        """Counts towards the cluster's limit of retries, until there is an answer."""
        self._call = call
        self._retry = retry
        self._left = config.num_retries
        self._backoff = Backoff(config.backoff_base_s, config.backoff_max_s)
        self._try_until = 0.0
        self._idle_from = 0.0
        self._hedge_at = 0.0
        self._hedges = config.hedges
        self.rivals: list[Call] = []
        """Tries that run beside the call's own."""

    # -- the time of one try ------------------------------------------------------------------------

    def begin_try(self) -> None:
        """The request was sent, or handed to a connection, or is whole now: the time of this try runs (Envoy: per_try_timeout)."""
        if self._call.is_rival:
            return
        limit = self._retry.config.per_try_timeout_s
        now = monotonic()
        self._try_until = now + limit if limit and self._call.is_request_over else 0.0
        self._idle_from = now
        if self._hedges and self._call.is_request_over:
            self._hedge_at = now + self._retry.config.hedge_delay_s
        self._arm()

    def heard(self, now: float) -> None:
        """Something was sent, or came."""
        self._idle_from = now

    def _arm(self) -> None:
        idle = self._retry.config.per_try_idle_timeout_s
        idle_until = self._idle_from + idle if idle else 0.0
        times = [idle_until] if self._call.is_responded else [idle_until, self._try_until, self._hedge_at]
        self.deadline = min([at for at in times if at], default=0.0)
        if self.deadline:
            self._call.down.worker.timers.add(self)

    def on_deadline(self) -> None:
        call = self._call
        self.deadline = 0.0
        if call.is_done:
            return
        if self.is_waiting:
            self._go()
            return
        if self._hedge_at and monotonic() >= self._hedge_at and not call.is_responded:
            self._hedge()
            return
        config = self._retry.config
        now = monotonic()
        cluster = call.cluster
        assert cluster is not None
        if self._try_until and now >= self._try_until and not call.is_responded:
            text = f"no answer from {call.endpoint} within the {config.per_try_timeout_s:g} s of one try"
            failed(call, Cause.TIMEOUT, Status.DEADLINE_EXCEEDED, f'"{cluster.name}": {text}', "UT")
        elif config.per_try_idle_timeout_s and now >= self._idle_from + config.per_try_idle_timeout_s:
            text = f"nothing came from {call.endpoint} for {config.per_try_idle_timeout_s:g} s"
            failed(call, Cause.TIMEOUT, Status.DEADLINE_EXCEEDED, f'"{cluster.name}": {text}', "SI")
        else:
            self._arm()

    def _hedge(self) -> None:
        """There is no answer yet: begin a try beside those that run, if the cluster's limit of retries allows."""
        call, load = self._call, self._call.load
        self._hedge_at = 0.0
        if load is not None and load.retrying < load.most_retries() and has_whole_request(call):
            self._hedges -= 1
            if self._hedges:
                self._hedge_at = monotonic() + self._retry.config.hedge_delay_s
            from sidecar.proxy import hedge  # which knows calls, which know this

            hedge.begin(call, self._retry)
        self._arm()

    # -- another try --------------------------------------------------------------------------------

    def again(self, reason: str, wait_s: float) -> bool:
        """Leave the try that failed and begin another after a while; False if there may be none, `flags` say why.

        `wait_s` is what the server asked for; below 0 it did not.
        """
        call = self._call
        cluster, endpoint, load = call.cluster, call.endpoint, call.load
        assert cluster is not None and endpoint is not None and load is not None
        self._release()
        if self._left <= 0:
            self.flags = "URX"
            return False
        if load.retrying >= load.most_retries():
            self.flags = "UO"
            return False
        chance = call.down.worker.chance
        wait = self._backoff.draw(chance.random()) if wait_s < 0.0 else policy.told_to_wait(wait_s, chance.random())
        if call.deadline and monotonic() + wait + SHORTEST_TRY_S >= call.deadline:
            return False  # it would end before it could be answered
        self._left -= 1
        self.is_counted = True
        load.retrying += 1
        cluster.worker.stats.count_retry(cluster.label, reason)
        self.tried.append(endpoint)
        if cluster.times_answers:
            cluster.score(call, endpoint, Status.UNAVAILABLE)
        call.detach(ErrorCode.CANCEL)
        call.endpoint = None
        load.active -= 1
        self.is_waiting = True
        self._try_until = 0.0
        if wait > 0.0:
            self.deadline = monotonic() + wait
            call.down.worker.timers.add(self)
        else:
            self._go()
        return True

    def _go(self) -> None:
        call = self._call
        cluster = call.cluster
        assert cluster is not None
        self.is_waiting = False
        if call.load is not None:
            call.load.active += 1
        call.count_down()
        cluster.begin_try(call)

    def on_answer(self) -> None:
        """There is an answer: the call no longer counts as a retry, and nothing runs beside it."""
        self._release()
        if self.rivals:
            cancel(self.rivals)

    def end(self, flag: str) -> str:
        """The call is over, with this response flag; returns all its flags."""
        self.deadline = 0.0
        self._release()
        if self.rivals:
            cancel(self.rivals)
        if self.is_waiting and self._call.load is not None:
            self._call.load.active += 1  # whoever ends the call takes it away
        return flag or self.flags

    def _release(self) -> None:
        if self.is_counted and self._call.load is not None:
            self.is_counted = False
            self._call.load.retrying -= 1


def cancel(rivals: "list[Call]") -> None:
    """End the tries that run beside a call's own."""
    from sidecar.proxy import hedge

    hedge.cancel(rivals)


def step_in(call: "Call") -> bool:
    """A try that runs beside a call's own takes its place; False if there is none."""
    if call.attempts is None or not call.attempts.rivals:
        return False
    from sidecar.proxy import hedge

    return hedge.step_in(call)


def of(call: "Call", retry: Retry) -> Attempts:
    """A call's attempts, made at first use."""
    found = call.attempts
    if found is None:
        found = call.attempts = Attempts(call, retry)
    return found


def failed(call: "Call", cause: Cause, status: Status, text: str, flag: str) -> None:
    """A try got no answer: there is another, or the call ends with this status, text and flag."""
    if call.endpoint is not None and call.endpoint.record is not None:
        call.endpoint.observe_failure(TOO_LATE if cause is Cause.TIMEOUT else UNREACHABLE)
    if call.is_rival:
        call.finish(status, flag)
        return
    if not call.is_responded and step_in(call):
        return
    retry = call.plan.decision.retry
    if retry is not None and not call.is_responded and cause in retry.rules.causes and has_whole_request(call):
        attempts = of(call, retry)
        reason = cause.value
        if attempts.again(reason, NEVER):
            return
        if attempts.flags:
            tries = len(attempts.tried) + 1
            flag = f"{flag},{attempts.flags}"
            why = f"after {tries} tries" if attempts.flags == "URX" else "too many retries run already"
            text = f"{text}; {why}"
    call.answer(status, f"{text} (flag {flag})", flag)


def answered(call: "Call", retry: Retry, block: "Block") -> bool:
    """The head of an answer came: True if it is thrown away for another try."""
    rules = retry.rules
    if block.is_error and block.values((b"x-envoy-ratelimited",)):
        is_reason = rules.takes_ratelimited
    else:
        is_reason = rules.takes(block.http_status, block.status) or (
            rules.reads_headers and _has_header(retry.config, block)
        )
    if not is_reason or not has_whole_request(call):
        return False
    if step_in(call):
        return True
    wait_s = _asked_wait(retry.config, block)
    attempts = of(call, retry)
    if wait_s == STOP:
        return False
    name = _reason(block)
    return attempts.again(name, wait_s)


STOP: Final = -2.0
"""The server asked not to be tried again."""


def _asked_wait(config: RetryPolicy, block: "Block") -> float:
    """Seconds that the server asks to be left alone; NEVER if it does not say, STOP for good."""
    names = (b"grpc-retry-pushback-ms", *(header.name for header in config.reset_headers))
    values = block.values(names)
    asked = values.get(b"grpc-retry-pushback-ms")
    if asked is not None:
        wait_s = policy.pushback(asked[0])
        return wait_s if wait_s >= 0.0 else STOP
    for header in config.reset_headers:
        value = values.get(header.name)
        if value is not None:
            wait_s = policy.reset_after(value[0], header.is_time, time())
            if 0.0 <= wait_s <= config.reset_max_s:
                return wait_s
    return NEVER


def _has_header(config: RetryPolicy, block: "Block") -> bool:
    values = block.values(tuple(match.name for match in config.headers))
    return any(header_holds(match, values) for match in config.headers)


def _reason(block: "Block") -> str:
    if block.http_status >= 400:
        return str(block.http_status)
    return Status(block.status).name if 0 <= block.status <= 16 else "answer"


def has_whole_request(call: "Call") -> bool:
    """True if all that came of the request is still there to be sent again."""
    return call.body is not None or (call.is_request_over and call.body_size == 0)
