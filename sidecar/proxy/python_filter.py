"""Filters in plain Python in a call's way (`sidecar.filtering`): called, timed, and kept from harming calls that are not theirs.

What a filter raises is its own: the call goes on as if it were not there (open) or is refused (closed). One that takes longer than its
budget several times in a row is switched off for a while, with the same choice. What blocks for ever cannot be ended: it runs here.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sidecar.filtering import Answer, Filter, Headers, Request, Response, load
from sidecar.http2 import headers
from sidecar.proxy import step
from sidecar.proxy.config import PythonFilter, Route, VirtualHost
from sidecar.proxy.decision import Plan
from sidecar.proxy.route import Request as Asking
from sidecar.proxy.status import Status
from sidecar.proxy.step import Asked, Does, Step, Verdict
from sidecar.proxy.worker import Worker

if TYPE_CHECKING:
    from sidecar.proxy.call import Call

FLAG: Final = "PYF"
"""Of answers by a filter, or for want of one; Envoy has no response flag for these."""
_HTTP: Final = {0: 200, 3: 400, 5: 404, 7: 403, 8: 429, 12: 501, 14: 503, 16: 401}
"""For an answer to what is not gRPC."""

T = TypeVar("T")


class _Failed(Exception):
    """The filter raised something, or is off."""


class PythonFilterHost(step.Filter):
    """One filter in force, with its time."""

    def __init__(self, config: PythonFilter, worker: Worker) -> None:
        super().__init__()
        self.config = config
        self.worker = worker
        self.filter = load(config.name, json.loads(config.settings))
        self.stats = worker.stats.of_filter(config.name)
        self.overruns = 0
        """In a row."""
        self.off_until = 0.0
        kind = type(self.filter)
        self.asks = kind.on_request is not Filter.on_request
        self.reads_answers = kind.on_response is not Filter.on_response
        self.watches_end = kind.on_end is not Filter.on_end
        self._step = PythonStep(self)

    def step_for(self, request: Asking, host: VirtualHost | None, route: Route | None) -> Step | None:
        return self._step

    @property
    def is_off(self) -> bool:
        """Switched off, as it took too long too often."""
        return self.worker.now < self.off_until

    def run(self, what: Callable[..., T], *given: Any) -> T:
        """Call the filter within its limits. Raises _Failed."""
        stats = self.stats
        if self.is_off:
            stats.skipped += 1
            raise _Failed("is off, as it took too long")
        start = perf_counter()
        try:
            return what(*given)
        except (Exception, SystemExit) as error:
            stats.failed += 1
            raise _Failed(f"failed: {type(error).__name__}: {error}") from error
        finally:
            self._count(perf_counter() - start)

    def _count(self, seconds: float) -> None:
        stats, config = self.stats, self.config
        stats.seconds += seconds
        if seconds <= config.budget_s:
            self.overruns = 0
            return
        stats.overruns += 1
        self.overruns += 1
        if self.overruns >= config.max_overruns:
            self.overruns = 0
            stats.switched_off += 1
            self.off_until = self.worker.now + seconds + config.off_s


class PythonStep(Step):
    """Its way with calls."""

    def __init__(self, owner: PythonFilterHost) -> None:
        super().__init__()
        self._owner = owner
        self.watches_end = owner.watches_end
        self.edits_answer = owner.reads_answers

    def enter(self, call: "Call") -> bool:
        owner = self._owner
        request = _request(call)
        if owner.watches_end or owner.reads_answers:
            if call.held is None:
                call.held = []
            call.held.append((self, request))
        if not owner.asks:
            return True
        try:
            answer: Any = owner.run(owner.filter.on_request, request)
            if answer is not None and not isinstance(answer, Answer):
                owner.stats.failed += 1
                raise _Failed(f"answered with {type(answer).__name__}, which is no Answer")
            fields = _fields(Headers(answer.headers)) if answer is not None else b""
            if request.headers.is_changed:
                call.plan = _with(call.plan, request.headers)
        except _Failed as error:
            return self._without(call, error)
        if answer is None:
            owner.stats.passed += 1
            return True
        owner.stats.answered += 1
        http_status = answer.http_status or _HTTP.get(answer.status, 500)
        text = answer.message or f'filter "{owner.config.name}" answered (flag {FLAG})'
        call.answer(Status(answer.status), text, FLAG, http_status, fields)
        return False

    def _without(self, call: "Call", error: _Failed) -> bool:
        """The filter has nothing to say; True if the call goes on."""
        config = self._owner.config
        if not config.fails_closed:
            return True
        call.answer(Status.UNAVAILABLE, f'filter "{config.name}" {error} (flag {FLAG})', FLAG, 503)
        return False

    def edit_answer(self, call: "Call", block: bytes, http_status: int, grpc_status: int) -> bytes | None:
        owner = self._owner
        request = self._request_of(call)
        if request is None:
            return block
        pairs = [(name, value) for name, value in headers.decode(block) if not name.startswith(b":")]
        response = Response(_headers(pairs), http_status, grpc_status if grpc_status >= 0 else None)
        try:
            owner.run(owner.filter.on_response, request, response)
        except _Failed as error:
            if not owner.config.fails_closed:
                return block
            call.is_responded = False  # nothing of it was sent yet
            self._without(call, error)
            return None
        if not response.headers.is_changed:
            return block
        pseudo = [field[1] for field in headers.split(block) if headers.name_of(field).startswith(b":")]
        return b"".join(pseudo) + _fields(response.headers)

    def leave(self, call: "Call", status: int) -> None:
        request = self._request_of(call)
        if request is not None:
            with suppress(_Failed):  # it is counted; the call is over
                self._owner.run(self._owner.filter.on_end, request, status)

    def _request_of(self, call: "Call") -> Request | None:
        for holder, held in call.held or ():
            if holder is self and isinstance(held, Request):
                return held
        return None

    def foresee(self, asked: Asked) -> Verdict:
        owner = self._owner
        kind, name = "Python filter", f'"{owner.config.name}"'
        if owner.is_off:
            why = f"{name} is off, as it took too long"
            return Verdict(kind, Does.REFUSE if owner.config.fails_closed else Does.PASS, why)
        if not owner.asks:
            return Verdict(kind, Does.PASS, f"{name} does not look at requests")
        return Verdict(kind, Does.CHANCE, f"{name} decides when a call comes: it is not asked now")


def _request(call: "Call") -> Request:
    pairs = headers.decode(call.plan.block)
    pseudo = {name: value for name, value in pairs if name.startswith(b":")}
    return Request(
        path=pseudo.get(b":path", b"/").decode("latin-1"),
        headers=_headers([pair for pair in pairs if not pair[0].startswith(b":")]),
        authority=pseudo.get(b":authority", b"").decode("latin-1"),
        caller=call.down.caller.uris,
        caller_host=call.down.remote_host,
    )


def _headers(pairs: list[tuple[bytes, bytes]]) -> Headers:
    return Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in pairs])


def _fields(found: Headers) -> bytes:
    return b"".join(headers.encode_field(name.encode("latin-1"), value.encode("latin-1")) for name, value in found)


def _with(plan: Plan, found: Headers) -> Plan:
    """The plan with other headers; its own is shared by many calls."""
    pseudo = [field[1] for field in headers.split(plan.block) if headers.name_of(field).startswith(b":")]
    return Plan(plan.decision, b"".join(pseudo) + _fields(found), plan.timeout_s, plan.values)
