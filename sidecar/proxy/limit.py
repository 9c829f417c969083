"""The local rate limit as a step of a call's way: its limiters, its mode, its counters."""

from typing import TYPE_CHECKING, Final

from sidecar.http2 import headers
from sidecar.policy.limiting.concurrency import Concurrency
from sidecar.policy.limiting.gcra import Gcra
from sidecar.policy.limiting.keyed import Keyed
from sidecar.policy.limiting.leaky_bucket import LeakyBucket
from sidecar.policy.limiting.limiter import Limiter
from sidecar.policy.limiting.sliding_window import SlidingLog, SlidingWindow
from sidecar.policy.limiting.token_bucket import TokenBucket
from sidecar.proxy.config import Algorithm, LimiterConfig, LocalRateLimit, Route, VirtualHost
from sidecar.proxy.limit_actions import Descriptor, DescriptorMaker, names_read
from sidecar.proxy.route import Request
from sidecar.proxy.status import Status
from sidecar.proxy.step import Asked, Does, Filter, Step, Verdict
from sidecar.proxy.worker import Worker

if TYPE_CHECKING:
    from sidecar.proxy.call import Call

KIND: Final = "rate limit"
MAX_KEY: Final = 4096
"""Bytes of a descriptor with a count of its own; longer ones share one."""


def make_limiter(config: LimiterConfig, now: float) -> Limiter:
    """A limiter that nobody has used yet."""
    requests, interval = config.requests, config.interval_s
    match config.algorithm:
        case Algorithm.TOKEN_BUCKET:
            return TokenBucket(config.burst or requests, requests, interval, now)
        case Algorithm.GCRA:
            return Gcra(requests, interval, config.burst or requests, now)
        case Algorithm.LEAKY_BUCKET:
            return LeakyBucket(requests, interval, config.max_wait_s, now)
        case Algorithm.SLIDING_WINDOW:
            return SlidingWindow(requests, interval, now)
        case Algorithm.SLIDING_LOG:
            return SlidingLog(requests, interval)
        case Algorithm.CONCURRENCY:
            return Concurrency(requests)


class _Rule:
    """Calls with a descriptor of one form."""

    def __init__(self, config: LimiterConfig, limiter: Limiter | None, keyed: Keyed | None) -> None:
        self.config = config
        self.limiter = limiter
        self.keyed = keyed
        """Set if the descriptor takes any value of some entry."""

    def of(self, descriptor: Descriptor, now: float) -> Limiter:
        """The limiter that counts for a descriptor."""
        if self.keyed is None:
            assert self.limiter is not None
            return self.limiter
        return self.keyed.of(_key(descriptor), now)

    def peek(self, descriptor: Descriptor, now: float) -> Limiter:
        """The same, of which nothing is kept."""
        if self.keyed is None:
            assert self.limiter is not None
            return self.limiter
        return self.keyed.peek(_key(descriptor), now)


def _key(descriptor: Descriptor) -> bytes:
    key = b"\0".join(value for _, value in descriptor)
    return key if len(key) <= MAX_KEY else b""


class LimitFilter(Filter):
    """A local rate limit in force (Envoy: extensions.filters.http.local_ratelimit.v3.LocalRateLimit)."""

    def __init__(self, config: LocalRateLimit, worker: Worker, now: float) -> None:
        super().__init__()
        self.value_names = names_read(config.actions)
        self.config = config
        self.stats = worker.stats.of_limit(config.stat_prefix)
        self.worker = worker
        self.limiter = make_limiter(config.limiter, now) if config.limiter is not None else None
        self.status = Status.RESOURCE_EXHAUSTED if config.as_resource_exhausted else Status.UNAVAILABLE
        self._exact: dict[Descriptor, _Rule] = {}
        self._wild: list[tuple[Descriptor, _Rule]] = []
        for item in config.descriptors:
            descriptor = tuple((key.encode(), value.encode()) for key, value in item.entries)
            if all(value for _, value in descriptor):
                self._exact[descriptor] = _Rule(item.limiter, make_limiter(item.limiter, now), None)
            else:
                self._wild.append((descriptor, _Rule(item.limiter, None, _keyed(item.limiter, config.max_keys))))
        self._plain = Limit(self)

    def step_for(self, request: Request, host: VirtualHost | None, route: Route | None) -> Step | None:
        config = self.config
        if not config.descriptors:
            return self._plain
        chosen = config.actions
        if not chosen:
            chosen = (route.limit_actions if route else ()) or (host.limit_actions if host else ())
        makers = [DescriptorMaker(item.actions, route) for item in chosen if item.stage == config.stage]
        return DescribedLimit(self, makers) if makers else self._plain

    def rule_of(self, descriptor: Descriptor) -> _Rule | None:
        """The rule for a descriptor: the exact one before one that takes any value."""
        found = self._exact.get(descriptor)
        if found is not None:
            return found
        for pattern, rule in self._wild:
            if len(pattern) == len(descriptor) and all(
                key == own and (not value or value == given)
                for (key, value), (own, given) in zip(pattern, descriptor, strict=True)
            ):
                return rule
        return None


def _keyed(config: LimiterConfig, max_keys: int) -> Keyed:
    return Keyed(lambda now: make_limiter(config, now), max_keys)


class Limit(Step):
    """The way of calls that have no descriptor: one limiter for all."""

    def __init__(self, owner: LimitFilter) -> None:
        super().__init__()
        config = owner.config
        self.config = config
        self._owner = owner
        self._limiter = owner.limiter
        self._is_certain = config.enabled >= 1.0
        self._is_plain = config.limiter is None or config.limiter.algorithm is Algorithm.TOKEN_BUCKET
        self._is_plain = self._is_plain and not config.tells_limits
        self.watches_end = config.limiter is not None and config.limiter.algorithm is Algorithm.CONCURRENCY

    def enter(self, call: "Call") -> bool:
        limiter = self._limiter
        if limiter is None or not (self._is_certain or self._owner.worker.chance.random() < self.config.enabled):
            return True
        assert self.config.limiter is not None
        now = self._owner.worker.now
        wait = limiter.admit(now)
        if self._is_plain and wait == 0.0:
            self._owner.stats.allowed += 1
            return True
        return _settle(self._owner, call, self, limiter, self.config.limiter, wait, now)

    def leave(self, call: "Call", status: int) -> None:
        release(call, self)

    def foresee(self, asked: Asked) -> Verdict:
        config = self.config
        if self._limiter is None or config.limiter is None:
            return Verdict(KIND, Does.PASS, f'"{config.stat_prefix}" limits no such calls')
        return _foreseen(config, self._limiter, config.limiter, asked.now)


class DescribedLimit(Step):
    """The way of calls that may have a descriptor: the limiters of all that apply, the slowest first (as Envoy)."""

    def __init__(self, owner: LimitFilter, makers: list[DescriptorMaker]) -> None:
        super().__init__()
        self._owner = owner
        self._makers = makers
        configs = [owner.config.limiter, *(item.limiter for item in owner.config.descriptors)]
        self.watches_end = any(item is not None and item.algorithm is Algorithm.CONCURRENCY for item in configs)

    def enter(self, call: "Call") -> bool:
        owner = self._owner
        config = owner.config
        if config.enabled < 1.0 and owner.worker.chance.random() >= config.enabled:
            return True
        now = owner.worker.now
        found: list[tuple[float, int, _Rule, Descriptor]] = []
        for maker in self._makers:
            descriptor = maker.make(call)
            rule = owner.rule_of(descriptor) if descriptor is not None else None
            if rule is not None and descriptor is not None:
                found.append((rule.config.requests / rule.config.interval_s, len(found), rule, descriptor))
        found.sort()
        longest = 0.0
        last: tuple[Limiter, LimiterConfig] | None = None
        for _, _, rule, descriptor in found:
            limiter = rule.of(descriptor, now)
            wait = limiter.admit(now)
            last = (limiter, rule.config)
            if wait < 0.0:
                return _settle(owner, call, self, limiter, rule.config, wait, now)
            _hold_place(call, self, limiter, rule.config)
            longest = max(longest, wait)
        if config.limiter is not None and owner.limiter is not None and (config.counts_all or not found):
            wait = owner.limiter.admit(now)
            last = (owner.limiter, config.limiter)
            if wait < 0.0:
                return _settle(owner, call, self, owner.limiter, config.limiter, wait, now)
            _hold_place(call, self, owner.limiter, config.limiter)
            longest = max(longest, wait)
        if last is None:
            return True
        return _settle(owner, call, None, last[0], last[1], longest, now)

    def leave(self, call: "Call", status: int) -> None:
        release(call, self)

    def foresee(self, asked: Asked) -> Verdict:
        owner = self._owner
        config = owner.config
        worst = Verdict(KIND, Does.PASS, f'"{config.stat_prefix}" limits no such calls')
        is_described = False
        for maker in self._makers:
            descriptor = maker.of(asked.values, asked.caller.host)
            rule = owner.rule_of(descriptor) if descriptor is not None else None
            if rule is None or descriptor is None:
                continue
            found = _foreseen(config, rule.peek(descriptor, asked.now), rule.config, asked.now, descriptor)
            if not is_described or worst.does is Does.PASS or found.does is Does.REFUSE:
                worst = found
            is_described = True
        if config.limiter is not None and owner.limiter is not None and (config.counts_all or not is_described):
            found = _foreseen(config, owner.limiter, config.limiter, asked.now)
            if not is_described or worst.does is Does.PASS:
                worst = found
        return worst


def _foreseen(
    config: LocalRateLimit, limiter: Limiter, rates: LimiterConfig, now: float, descriptor: Descriptor = ()
) -> Verdict:
    """What a limiter would say of a call that came now."""
    left = limiter.remaining(now)
    who = f'"{config.stat_prefix}"'
    if descriptor:
        who += " for " + ", ".join(f"{key.decode()}={value.decode('latin-1')}" for key, value in descriptor)
    if rates.algorithm is Algorithm.CONCURRENCY:
        state = f"{who}: {left} of {rates.requests} calls at once are left"
    else:
        state = f"{who}: {left} of {rates.burst or rates.requests} calls are left, {rates.requests} come per {rates.interval_s:g} s"
    if config.enabled <= 0.0:
        return Verdict(KIND, Does.PASS, f"{who} is off")
    if left < 1:
        retry_after_s = limiter.retry_after_s(now)
        state += f"; the next in {retry_after_s:.3f} s" if retry_after_s > 0.0 else ""
        if config.enforced <= 0.0:
            return Verdict(KIND, Does.WOULD_REFUSE, state)
        return Verdict(KIND, Does.REFUSE if config.enforced >= 1.0 and config.enabled >= 1.0 else Does.CHANCE, state)
    if isinstance(limiter, LeakyBucket) and limiter.wait_s(now) > 0.0 and config.enforced > 0.0:
        return Verdict(KIND, Does.HOLD, f"{state}; this one after {limiter.wait_s(now):.3f} s")
    return Verdict(KIND, Does.PASS, state)


def _hold_place(call: "Call", step: Step, limiter: Limiter, config: LimiterConfig) -> None:
    """Note that the call's end must be told to the limiter."""
    if config.algorithm is Algorithm.CONCURRENCY:
        if call.held is None:
            call.held = []
        call.held.append((step, limiter))


def release(call: "Call", step: Step) -> None:
    """The call is over: give back what it held of a step's limiters."""
    for holder, limiter in call.held or ():
        if holder is step and isinstance(limiter, Limiter):
            limiter.release()


def _settle(
    owner: LimitFilter,
    call: "Call",
    step: Step | None,
    limiter: Limiter,
    config: LimiterConfig,
    wait: float,
    now: float,
) -> bool:
    """What comes of a limiter's verdict: the call goes on, is held, is refused, or would have been."""
    if owner.config.tells_limits:
        call.response_fields += _told(limiter, config, now)
    if wait >= 0.0:
        if step is not None:
            _hold_place(call, step, limiter, config)
        owner.stats.allowed += 1
        if wait > 0.0 and owner.config.enforced > 0.0:
            owner.stats.held += 1
            owner.worker.loop.call_later(wait, call.resume)
            return False
        return True
    enforced = owner.config.enforced
    if enforced >= 1.0 or (enforced > 0.0 and owner.worker.chance.random() < enforced):
        owner.stats.refused += 1
        retry_after_s = limiter.retry_after_s(now)
        fields = _push_back(retry_after_s) if owner.config.as_resource_exhausted and call.plan.decision.is_grpc else b""
        call.answer(owner.status, _sentence(owner.config, config, retry_after_s), "RL", 0, fields)
        return False
    owner.stats.would_refuse += 1
    return True


def _sentence(config: LocalRateLimit, limiter: LimiterConfig, retry_after_s: float) -> str:
    """What a refused caller reads."""
    who = f'rate limit "{config.stat_prefix}"'
    if limiter.algorithm is Algorithm.CONCURRENCY:
        return f"{who}: {limiter.requests} calls run at this instance already, which is the most (flag RL)"
    return (
        f"{who}: {limiter.requests} calls per {limiter.interval_s:g} s at this instance are used up; "
        f"try again in {retry_after_s:.3f} s (flag RL)"
    )


def _push_back(seconds: float) -> bytes:
    """When to try again, for gRPC's own retries (gRFC A6)."""
    return headers.encode_field(b"grpc-retry-pushback-ms", b"%d" % (int(seconds * 1000) + 1)) if seconds else b""


def _told(limiter: Limiter, config: LimiterConfig, now: float) -> bytes:
    """Limit, rest, and seconds until more (Envoy: enable_x_ratelimit_headers, draft 03)."""
    return b"".join(
        (
            headers.encode_field(b"x-ratelimit-limit", b"%d" % (config.burst or config.requests)),
            headers.encode_field(b"x-ratelimit-remaining", b"%d" % limiter.remaining(now)),
            headers.encode_field(b"x-ratelimit-reset", b"%d" % -int(-limiter.retry_after_s(now) // 1)),
        )
    )
