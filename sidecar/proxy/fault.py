"""Fault injection as a step of a call's way: some calls are held for a while, some are answered with an error (Envoy: http.fault.v3)."""

from typing import TYPE_CHECKING, Final

from sidecar.proxy import status as grpc_status
from sidecar.proxy.config import Fault, Route, VirtualHost
from sidecar.proxy.route import Request, header_holds
from sidecar.proxy.status import NAMES, Status
from sidecar.proxy.step import Asked, Does, Filter, Step, Verdict
from sidecar.proxy.worker import Worker

if TYPE_CHECKING:
    from sidecar.proxy.call import Call

DELAY: Final = b"x-envoy-fault-delay-request"
DELAY_PERCENT: Final = b"x-envoy-fault-delay-request-percentage"
ABORT: Final = b"x-envoy-fault-abort-request"
ABORT_GRPC: Final = b"x-envoy-fault-abort-grpc-request"
ABORT_PERCENT: Final = b"x-envoy-fault-abort-request-percentage"
MAX_DIGITS: Final = 9
OK: Final = 200


class FaultFilter(Filter):
    """Faults of one configuration: what is active is counted over all routes that have it."""

    def __init__(self, config: Fault, worker: Worker) -> None:
        super().__init__()
        self.config = config
        self.worker = worker
        self.active = 0
        """Calls that run with a fault in them."""
        self.header_names = frozenset(match.name for match in config.headers)
        names: list[bytes] = []
        if config.delay_by_header:
            names += [DELAY, DELAY_PERCENT]
        if config.abort_by_header:
            names += [ABORT, ABORT_GRPC, ABORT_PERCENT]
        self.value_names = frozenset(names)
        self._step = FaultStep(self)

    def step_for(self, request: Request, host: VirtualHost | None, route: Route | None) -> Step | None:
        holds = all(header_holds(match, request.headers) for match in self.config.headers)
        return self._step if holds else None

    def may_inject(self) -> bool:
        """True if one more call may get a fault."""
        most = self.config.max_active
        return most is None or self.active < most


class FaultStep(Step):
    """The dice, for each call."""

    def __init__(self, owner: FaultFilter) -> None:
        super().__init__()
        self._owner = owner
        self.watches_end = True

    def enter(self, call: "Call") -> bool:
        delay_s = self._delay(call)
        if delay_s > 0.0 and self._begin(call):
            owner = self._owner
            owner.worker.stats.count_fault("delay")
            call.flags = "DI"
            owner.worker.loop.call_later(delay_s, self._go_on, call)
            return False
        return self._abort(call)

    def _go_on(self, call: "Call") -> None:
        if not call.is_done and self._abort(call):
            call.resume()

    def _abort(self, call: "Call") -> bool:
        """True if the call goes on."""
        grpc, http = self._abort_status(call)
        if (grpc is None and not http) or not self._begin(call):
            return True
        self._owner.worker.stats.count_fault("abort")
        if grpc is None:
            grpc = grpc_status.of_http(http)
            what = f"HTTP {http}"
        else:
            http = http or OK
            what = NAMES[grpc]
        call.answer(Status(grpc), f"fault injected on purpose: aborted with {what} (flag FI)", "FI", http)
        return False

    def _delay(self, call: "Call") -> float:
        """Seconds that the call is to be held; 0 is not at all."""
        config = self._owner.config
        delay_s, share = config.delay_s, config.delay_share
        if config.delay_by_header:
            asked = _number(call, DELAY)
            if asked is None:
                return 0.0
            delay_s = asked / 1000.0
            share = _lower(share, _number(call, DELAY_PERCENT), config.delay_denominator)
        return delay_s if delay_s > 0.0 and self._hits(share) else 0.0

    def _abort_status(self, call: "Call") -> tuple[int | None, int]:
        """gRPC and HTTP status of the error; None and 0 for none."""
        config = self._owner.config
        grpc, http, share = config.abort_grpc, config.abort_http, config.abort_share
        if config.abort_by_header:
            http = _number(call, ABORT) or 0
            if not 200 <= http < 600:
                http = 0
            grpc = _number(call, ABORT_GRPC)
            if grpc is not None and grpc > 16:
                grpc = None
            if http:
                grpc = None
            share = _lower(share, _number(call, ABORT_PERCENT), config.abort_denominator)
        if (grpc is None and not http) or not self._hits(share):
            return None, 0
        return grpc, http

    def foresee(self, asked: Asked) -> Verdict:
        config = self._owner.config
        parts: list[str] = []
        is_certain = False
        if config.delay_by_header:
            parts.append(f"delays calls that ask for it by {DELAY.decode()}")
        elif config.delay_s > 0.0 and config.delay_share > 0.0:
            parts.append(f"delays {config.delay_share:.2%} of the calls by {config.delay_s:g} s")
        if config.abort_by_header:
            parts.append(f"aborts calls that ask for it by {ABORT.decode()} or {ABORT_GRPC.decode()}")
        elif config.abort_share > 0.0 and (config.abort_grpc is not None or config.abort_http):
            what = NAMES[config.abort_grpc] if config.abort_grpc is not None else f"HTTP {config.abort_http}"
            parts.append(f"aborts {config.abort_share:.2%} of the calls with {what}")
            is_certain = config.abort_share >= 1.0
        if not parts or not self._owner.may_inject():
            why = "as many calls have a fault as may have" if parts else "no fault for such calls"
            return Verdict("fault", Does.PASS, why)
        return Verdict("fault", Does.REFUSE if is_certain else Does.CHANCE, "; ".join(parts))

    def _hits(self, share: float) -> bool:
        return share >= 1.0 or (share > 0.0 and self._owner.worker.chance.random() < share)

    def _begin(self, call: "Call") -> bool:
        """Count the call as one with a fault; False if there are as many as may be."""
        if any(holder is self for holder, _ in call.held or ()):
            return True
        if not self._owner.may_inject():
            self._owner.worker.stats.count_fault("overflow")
            return False
        if call.held is None:
            call.held = []
        call.held.append((self, None))
        self._owner.active += 1
        return True

    def leave(self, call: "Call", status: int) -> None:
        if any(holder is self for holder, _ in call.held or ()):
            self._owner.active -= 1


def _number(call: "Call", name: bytes) -> int | None:
    """The number in a header of the call; None if there is none."""
    values = (call.plan.values or {}).get(name)
    if not values or not values[0].isdigit() or len(values[0]) > MAX_DIGITS:
        return None
    return int(values[0])


def _lower(share: float, asked: int | None, denominator: int) -> float:
    """The share that a header asks for, if it is less."""
    return share if asked is None else min(share, asked / denominator)
