"""Steps that refuse calls before a service is overloaded: admission control and adaptive concurrency."""

from time import monotonic
from typing import TYPE_CHECKING

from sidecar.policy.admission import Admission
from sidecar.policy.gradient import Gradient
from sidecar.proxy.config import AdaptiveConcurrency, AdmissionControl, Route, VirtualHost
from sidecar.proxy.route import Request
from sidecar.proxy.status import NOT_GRPC, Status
from sidecar.proxy.step import Asked, Does, Filter, Step, Verdict
from sidecar.proxy.timers import Timed
from sidecar.proxy.worker import Worker

if TYPE_CHECKING:
    from sidecar.proxy.call import Call


class AdmissionFilter(Filter):
    """Envoy: extensions.filters.http.admission_control.v3.AdmissionControl."""

    def __init__(self, config: AdmissionControl, worker: Worker) -> None:
        super().__init__()
        self._step = AdmissionStep(config, worker)

    def step_for(self, request: Request, host: VirtualHost | None, route: Route | None) -> Step | None:
        return self._step


class AdmissionStep(Step):
    """Refuses by the share of failures among the last calls."""

    def __init__(self, config: AdmissionControl, worker: Worker) -> None:
        super().__init__()
        self._config = config
        self._worker = worker
        self._core = Admission(
            config.window_s, config.threshold, config.aggression, config.rps_threshold, config.max_rejection
        )
        self.watches_end = True

    def enter(self, call: "Call") -> bool:
        config = self._config
        if not config.is_enabled:
            return True
        worker = self._worker
        share = self._core.chance(worker.now)
        if share > 0.0 and worker.chance.random() < share:
            worker.stats.count_shed("admission_control", is_enforced=config.is_enforced)
            if config.is_enforced:
                core = self._core
                text = f"admission control: {core.calls - core.successes} of the last {core.calls} calls failed"
                call.answer(Status.UNAVAILABLE, f"{text}, so {share:.0%} of new ones are refused (flag OM)", "OM")
                return False
        if call.held is None:
            call.held = []
        call.held.append((self, None))
        return True

    def leave(self, call: "Call", status: int) -> None:
        if any(holder is self for holder, _ in call.held or ()):
            self._core.record(self._is_success(call, status), self._worker.now)

    def foresee(self, asked: Asked) -> Verdict:
        kind = "admission control"
        if not self._config.is_enabled:
            return Verdict(kind, Does.PASS, "it is off")
        core = self._core
        share = core.chance(asked.now)
        why = f"{core.calls - core.successes} of the last {core.calls} calls failed"
        if share <= 0.0:
            return Verdict(kind, Does.PASS, why)
        why += f", {share:.0%} of new ones are refused"
        return Verdict(kind, Does.CHANCE if self._config.is_enforced else Does.WOULD_REFUSE, why)

    def _is_success(self, call: "Call", status: int) -> bool:
        if call.plan.decision.is_grpc and status < NOT_GRPC:
            return status in self._config.grpc_success
        code = call.http_status
        return any(low <= code < high for low, high in self._config.http_success)


class AdaptiveFilter(Filter):
    """Envoy: extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency."""

    def __init__(self, config: AdaptiveConcurrency, worker: Worker, now: float) -> None:
        super().__init__()
        self._step = AdaptiveStep(config, worker, now) if config.is_enabled else None

    def step_for(self, request: Request, host: VirtualHost | None, route: Route | None) -> Step | None:
        return self._step


class AdaptiveStep(Step):
    """Lets as many calls run at once as do not make them slower."""

    def __init__(self, config: AdaptiveConcurrency, worker: Worker, now: float) -> None:
        super().__init__()
        self._config = config
        self._worker = worker
        self.core = Gradient(config.gradient, worker.chance, now)
        self.watches_end = True
        self._ticker = Ticker(self.core, worker)

    def enter(self, call: "Call") -> bool:
        core = self.core
        self._ticker.wind()
        if not core.enter():
            self._worker.stats.count_shed("adaptive_concurrency", is_enforced=self._config.is_enforced)
            if self._config.is_enforced:
                text = f"adaptive concurrency: {core.limit} calls run, as many as leave each of them its usual time (flag OM)"
                call.answer(Status.UNAVAILABLE, text, "OM", self._config.gradient.refuses_with)
                return False
            core.running += 1
        if call.held is None:
            call.held = []
        call.held.append((self, monotonic()))
        return True

    def leave(self, call: "Call", status: int) -> None:
        for holder, started in call.held or ():
            if holder is self and isinstance(started, float):
                if call.http_status:
                    self.core.leave(started, monotonic())
                    self._ticker.wind()
                else:
                    self.core.cancel()

    def foresee(self, asked: Asked) -> Verdict:
        core = self.core
        why = f"{core.running} calls run, the limit is {core.limit}"
        if core.running < core.limit:
            return Verdict("adaptive concurrency", Does.PASS, why)
        return Verdict("adaptive concurrency", Does.REFUSE if self._config.is_enforced else Does.WOULD_REFUSE, why)


class Ticker(Timed):
    """Calls `Gradient.tick` when it is time, as long as there are calls."""

    def __init__(self, core: Gradient, worker: Worker) -> None:
        self.deadline = 0.0
        self._core = core
        self._worker = worker

    def wind(self) -> None:
        """See to it that the next tick comes."""
        at = self._core.next_tick
        if at and (not self.deadline or at < self.deadline):
            self.deadline = at
            self._worker.timers.add(self)

    def on_deadline(self) -> None:
        self.deadline = 0.0
        self._core.tick(monotonic())
        if self._core.running:
            self.wind()
