"""A cluster at work: its endpoints, who is chosen, who waits, who is tried again.

A cluster outlives configurations that do not change it; endpoints outlive updates that still name them, so that connections
and counters go on.
"""

import asyncio
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from sidecar.policy.balance import ANY, Balancer, Latency
from sidecar.policy.balancing import Assignment, Balance
from sidecar.policy.breaker import Breaker
from sidecar.policy.hosts import Group, Health, Level
from sidecar.policy.retry import Cause, most_retries
from sidecar.policy.spread import Nobody, home_of, spread
from sidecar.policy.subset import Subsets
from sidecar.policy.zones import Home, Locality
from sidecar.proxy import attempts, breaking
from sidecar.proxy.care import ConnectionCare, Stalled
from sidecar.proxy.checks import Checker
from sidecar.proxy.config import ClusterConfig, Codec, EndpointConfig, Limits, LoadAssignment, Thresholds
from sidecar.proxy.connect import ConnectError, connect, connect_http1, settled
from sidecar.proxy.outlier import Outliers
from sidecar.proxy.status import Status
from sidecar.proxy.tls import security
from sidecar.proxy.upstream import Upstream
from sidecar.proxy.worker import Worker
from sidecar.telemetry.stats import CallStats

if TYPE_CHECKING:
    from sidecar.proxy.call import Call
    from sidecar.proxy.downstream import Downstream
    from sidecar.proxy.mirror import Mirror

FIRST_BACKOFF_S: Final = 0.025
LONGEST_BACKOFF_S: Final = 1.0
"""Waits between attempts to connect to an endpoint that fails, from the second failure in a row on; doubled each time."""
MAX_PUSHBACK_S: Final = 300.0
"""Longer an endpoint cannot keep calls away."""
_OVERLOADED: Final = (Status.RESOURCE_EXHAUSTED, Status.UNAVAILABLE)


def was_tried(call: "Call", endpoint: "Endpoint") -> bool:
    """True if a try of the call failed there."""
    return call.attempts is not None and endpoint in call.attempts.tried


class Endpoint:
    """One address: its connections and the calls that wait for one."""

    def __init__(self, cluster: "Cluster", config: EndpointConfig, now: float) -> None:
        balancing = cluster.config.balancing
        self.cluster = cluster
        self.config = config
        self.weight = config.weight
        self.health = config.health
        self.labels: Mapping[str, Hashable] = dict(config.labels)
        self.hash_name = _hash_name(config, hashes_hostname=balancing.hashes_hostname)
        self.since = now
        """When it came, or became healthy."""
        self.latency = Latency(balancing.first_latency_s, balancing.decay_s, now)
        self.active = 0
        """Calls that run or wait here."""
        self.checker: Checker | None = None
        """Asks it how it is; None if nobody does."""
        self.record = cluster.outliers.watch(self) if cluster.outliers is not None else None
        """What outlier detection knows of it; None if there is none."""
        self.stats = cluster.stats_of(config.version, security(cluster.config, config))
        self.ready: Upstream | None = None
        """The connection that takes the next call."""
        self.connections: list[Upstream] = []
        self.waiting: deque[Call] = deque()
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0
        """Attempts to connect in a row that failed."""
        self._not_before = 0.0
        """No attempt earlier than this."""

    def __str__(self) -> str:
        return f"{self.config.host}:{self.config.port}"

    def update(self, config: EndpointConfig) -> None:
        """Take over a new weight, health, version and labels."""
        self.config = config
        self.weight = config.weight
        self.judge()
        self.labels = dict(config.labels)
        self.hash_name = _hash_name(config, hashes_hostname=self.cluster.config.balancing.hashes_hostname)
        self.stats = self.cluster.stats_of(config.version, security(self.cluster.config, config))

    def observe(self, http_status: int, grpc_status: int) -> None:
        """It answered a call: its record is there."""
        outliers = self.cluster.outliers
        if outliers is not None and self.record is not None:
            outliers.answered(self.record, http_status, grpc_status)

    def observe_failure(self, code: int) -> None:
        """It did not answer a call; `code` is the HTTP status that this counts as."""
        outliers = self.cluster.outliers
        if outliers is not None and self.record is not None:
            outliers.failed(self.record, code)

    def on_check_passed(self) -> None:
        """It says that it is well: an ejection may end with that."""
        outliers = self.cluster.outliers
        if outliers is not None and self.record is not None and outliers.passed_check(self.record):
            self.cluster.rebalance_by_health()

    def judge(self) -> None:
        """Put together how it is: what the configuration says, unless it was found to be worse."""
        health = self.config.health
        is_ejected = self.record is not None and self.record.is_ejected
        if health is not Health.LEAVING and (is_ejected or (self.checker is not None and self.checker.has_failed)):
            health = Health.UNHEALTHY
        if health is Health.HEALTHY and self.health is not Health.HEALTHY:
            self.since = monotonic()
        self.health = health

    def take(self, call: "Call") -> None:
        """Send the call on a connection with room, or let it wait for one."""
        up = self.ready
        if up is not None and up.conn.has_room():
            call.send_to(up)
            return
        self._wait(call)

    def _wait(self, call: "Call") -> None:
        cluster = self.cluster
        for up in list(self.connections):
            if up.conn.is_going_away:
                up.retire()  # it has opened as many streams as it may
            elif up.conn.has_room():
                self.ready = up
                call.send_to(up)
                return
        if self.is_left_alone:
            other = cluster.another(call)
            if other is not None:
                self.active -= 1
                call.endpoint = other
                other.active += 1
                other.take(call)
                return
        load = call.load
        assert load is not None
        if load.pending >= load.limits.max_pending_requests:
            cluster.overflow(call, f"{load.pending} calls wait for a connection already")
            return
        load.pending += 1
        self.waiting.append(call)
        for up in self.connections:
            up.conn.waits_for_room = True
        if self._may_connect():
            cluster.connections += 1
            self._connecting = cluster.worker.loop.create_task(self._connect())

    def _may_connect(self) -> bool:
        """One connection each endpoint may have whatever the limit is, or its calls would wait for ever (as Envoy)."""
        if self._connecting is not None:
            return False
        return not self.connections or self.cluster.connections < self.cluster.config.max_connections

    async def _connect(self) -> None:
        """Open one more connection; a failure is told to all who wait."""
        cluster = self.cluster
        worker = cluster.worker
        up = Upstream(self, worker, cluster.config.http2)
        if cluster.config.life.max_requests:
            up.conn.last_id = 2 * cluster.config.life.max_requests - 1
        reason = ""
        try:
            wait = self._not_before - monotonic()
            if wait > 0.0:
                await asyncio.sleep(wait)
            if cluster.config.codec is Codec.HTTP1:
                await connect_http1(cluster.config, self.config, cast(asyncio.Protocol, up), worker.secrets)
            else:
                await connect(cluster.config, self.config, lambda: cast(asyncio.BaseProtocol, up), worker.secrets)
            await settled(cluster.config, self.config, up.settled)
        except ConnectError as error:
            reason = str(error)
        except asyncio.CancelledError:
            cluster.connections -= 1
            raise
        finally:
            self._connecting = None
        worker.now = monotonic()
        if reason:
            self._back_off(worker.now)
            cluster.connections -= 1
            waiting, self.waiting = self.waiting, deque()
            for call in waiting:
                if call.load is not None:
                    call.load.pending -= 1
            for call in waiting:
                text = f'upstream connect error: "{cluster.name}": {reason}'
                attempts.failed(call, Cause.CONNECT, Status.UNAVAILABLE, text, "UF")
            return
        self._failures = 0
        self._not_before = 0.0
        self.connections.append(up)
        cluster.had_traffic = True
        self.ready = up
        cluster.care.watch()
        self.serve_waiting()

    @property
    def is_left_alone(self) -> bool:
        """True while it has no connection, and no attempt is made since the last ones failed."""
        return self._failures > 0 and not self.connections and self.cluster.worker.now < self._not_before

    def _back_off(self, now: float) -> None:
        """After a second failure in a row wait before the next attempt: longer each time, by chance up to half more or less."""
        self._failures += 1
        if self._failures > 1:
            wait = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures - 2, 16))
            self._not_before = now + wait * (0.5 + self.cluster.worker.chance.random())

    def serve_waiting(self) -> None:
        """Send those who wait, as far as there is room."""
        while self.waiting:
            up = next((up for up in self.connections if up.conn.has_room()), None)
            if up is None:
                break
            call = self.waiting.popleft()
            if call.load is not None:
                call.load.pending -= 1
            call.count_down()
            call.send_to(up)
        else:
            for up in self.connections:
                up.conn.waits_for_room = False
            return
        if self._may_connect():
            self.cluster.connections += 1
            self._connecting = self.cluster.worker.loop.create_task(self._connect())

    def forget(self, call: "Call") -> None:
        """The call waits no more."""
        if self.waiting and call in self.waiting:
            self.waiting.remove(call)
            if call.load is not None:
                call.load.pending -= 1

    def on_connection_lost(self, up: Upstream) -> None:
        """A connection ended, or takes no new calls."""
        if up in self.connections:
            self.connections.remove(up)
            self.cluster.connections -= 1
        if self.ready is up:
            self.ready = next(iter(self.connections), None)
        if self.waiting:
            self.serve_waiting()

    def retire(self) -> None:
        """Take no new calls: connections close when their calls are over."""
        if self._connecting is not None and not self.waiting:
            self._connecting.cancel()
        for up in list(self.connections):
            up.retire()


class Load:
    """What runs of one priority, and how much may (Envoy: CircuitBreakers.Thresholds)."""

    __slots__ = ("active", "limits", "pending", "retrying")

    def __init__(self, limits: Thresholds) -> None:
        self.limits = limits
        self.active = 0
        """Calls that run or wait for a connection; not those that wait to be tried again."""
        self.pending = 0
        """Calls that wait for a connection."""
        self.retrying = 0
        """Calls whose last try was not the first, until it is answered."""

    def most_retries(self) -> int:
        """Retries at once that are allowed now, to a call whose last try is over and counts no more."""
        budget = self.limits.retry_budget
        if budget is None:
            return self.limits.max_retries
        return most_retries(self.active - 1, budget.percent, budget.least)


class Cluster:
    """The endpoints that take the same calls, and the limits on them."""

    def __init__(self, config: ClusterConfig, worker: Worker, direction: str, limits: Limits) -> None:
        self.config = config
        self.stalled = Stalled(worker, limits.max_unread_bytes)
        self.care = ConnectionCare(worker, self.open_connections)
        self.name = config.name
        self.worker = worker
        self.direction = direction
        self.load = Load(config.thresholds)
        self.high_load = Load(config.high_thresholds)
        """Of calls of priority HIGH."""
        self.connections = 0
        self.label = config.name.rpartition("|")[2]
        """For metrics: clusters are named `outbound|SERVICE.NAMESPACE`, and the direction is a label of its own."""
        self.stats = self.stats_of("")
        self._mirrors: dict[float, Mirror] = {}
        """By time-out."""
        self.endpoints: dict[tuple[str, int], Endpoint] = {}
        self.reads_wishes = config.balancing.is_hashed or config.balancing.subsetting is not None
        """True if what a call asks for decides where it goes."""
        self.times_answers = config.balancing.policy is Balance.PEAK_EWMA
        """True if endpoints are chosen by how slow they are."""
        self.breaker = Breaker(config.breaker, monotonic()) if config.breaker is not None else None
        self.outliers = Outliers(self, config.outlier_detection) if config.outlier_detection is not None else None
        self.had_traffic = False
        """There has been a connection for calls."""
        self._has_endpoints = False
        self._assignment = Assignment()
        self._home: Home | None = None
        self._balancer: Balancer[Endpoint] = Nobody()
        self.update_endpoints(config.endpoints)
        self.care.update(config.life)

    @property
    def active(self) -> int:
        """Calls that run or wait for a connection, of all priorities."""
        return self.load.active + self.high_load.active

    @property
    def pending(self) -> int:
        """Calls that wait for a connection, of all priorities."""
        return self.load.pending + self.high_load.pending

    def open_connections(self) -> list[Upstream]:
        """Those that take calls."""
        return [up for endpoint in self.endpoints.values() for up in endpoint.connections]

    def stats_of(self, version: str, security: str = "") -> CallStats:
        """The counters for calls to endpoints of a version."""
        return self.worker.stats.of_calls(self.direction, self.label, version, security)

    def set_direction(self, direction: str) -> None:
        """Count under this direction from now on: a cluster may come before the listener that leads to it."""
        if direction != self.direction:
            self.direction = direction
            self.stats = self.stats_of("")
            for endpoint in self.endpoints.values():
                endpoint.stats = self.stats_of(endpoint.config.version, security(self.config, endpoint.config))

    def update_endpoints(self, assigned: LoadAssignment) -> None:
        """Balance over these from now on; those that are gone finish what they run."""
        now = monotonic()
        fresh: dict[tuple[str, int], Endpoint] = {}
        for config in assigned.endpoints:
            key = (config.host, config.port)
            endpoint = self.endpoints.pop(key, None)
            if endpoint is None:
                endpoint = Endpoint(self, config, now)
            else:
                endpoint.update(config)
            fresh[key] = endpoint
        for gone in self.endpoints.values():
            if self.outliers is not None:
                self.outliers.forget(gone)
            if gone.checker is not None:
                gone.checker.stop()
            gone.retire()
        self.endpoints = fresh
        if self.config.checks:
            self._check_new()
        self._assignment = assigned.policy
        self.rebalance()

    def _check_new(self) -> None:
        """Begin to ask those that came; the first of a cluster are used until they have been asked."""
        for endpoint in self.endpoints.values():
            if endpoint.checker is None:
                endpoint.checker = Checker(self, endpoint, is_first=not self._has_endpoints)
                endpoint.judge()
        self._has_endpoints = self._has_endpoints or bool(self.endpoints)

    def place(self, home: Home | None) -> None:
        """Where this process and those like it run, from now on; None if that is not known."""
        if home != self._home:
            self._home = home
            self.rebalance()

    def rebalance(self) -> None:
        """Balance anew: endpoints came, went, or are in other health (`Endpoint.health`)."""
        levels = _levels(self.endpoints.values())
        subsetting = self.config.balancing.subsetting
        if subsetting is None or not subsetting.selectors:
            self._balancer = self._over(levels, monotonic())
        else:
            self._balancer = Subsets(levels, subsetting, self._over)

    def rebalance_by_health(self) -> None:
        """The same, after some were found to be failing, or to be well again."""
        for endpoint in self.endpoints.values():
            endpoint.judge()
        self.rebalance()

    def home(self, locality: Locality) -> Home:
        """Where its endpoints are, to one of them that runs at `locality`."""
        return home_of(_levels(self.endpoints.values()), locality)

    def _over(self, levels: "Sequence[Level[Endpoint]]", now: float) -> Balancer[Endpoint]:
        return spread(levels, self.config.balancing, self.worker.chance, now, self._assignment, self._home)

    def pick(self) -> Endpoint | None:
        """An endpoint for a connection that carries no calls."""
        return self._balancer.pick(ANY, 0, self.worker.now)

    def start(self, call: "Call") -> None:
        """Take a call in, if the limits allow."""
        call.cluster = self
        decision = call.plan.decision
        load = self.high_load if decision.is_urgent else self.load
        call.load = load
        load.active += 1
        retry = decision.retry
        if retry is not None and retry.times_tries:
            attempts.of(call, retry)
        if self.breaker is not None and not breaking.enter(self.breaker, call):
            return
        self.begin_try(call)

    def begin_try(self, call: "Call") -> None:
        """Send a call to an endpoint, for the first time or again, if the limits allow; it counts as active already."""
        load = call.load
        assert load is not None
        if load.active > load.limits.max_requests:
            self.overflow(call, f"{load.limits.max_requests} calls run already")
            return
        now = self.worker.now
        endpoint = self._balancer.pick(call.wish, 0, now)
        if call.attempts is not None and call.attempts.tried:
            for number in range(1, call.attempts.redraws + 1):
                if endpoint not in call.attempts.tried:
                    break
                endpoint = self._balancer.pick(call.wish, number, now)
        if endpoint is None:
            known = len(self.endpoints)
            why = f"none of its {known} endpoints is usable" if known else "it has no endpoints"
            call.answer(Status.UNAVAILABLE, f'no healthy upstream: "{self.name}": {why} (flag UH)', "UH")
            return
        call.endpoint = endpoint
        call.sent_at = now
        endpoint.active += 1
        endpoint.take(call)

    def score(self, call: "Call", endpoint: Endpoint, status: int) -> None:
        """A call, or a try of one, is over: what refuses calls, or does not answer, is as slow as can be."""
        balancing = self.config.balancing
        now = monotonic()  # timers do not set the worker's clock
        if status in _OVERLOADED or call.pushback_s:
            endpoint.latency.observe(min(max(balancing.penalty_s, call.pushback_s), MAX_PUSHBACK_S), now)
        elif not call.is_responded and now - call.sent_at > endpoint.latency.seconds(now):
            endpoint.latency.observe(now - call.sent_at, now)  # it has not answered in all this time

    def overflow(self, call: "Call", why: str) -> None:
        """Refuse a call over a limit (flag UO)."""
        call.answer(Status.UNAVAILABLE, f'upstream overflow: "{self.name}": {why} (flag UO)', "UO")

    def another(self, call: "Call") -> Endpoint | None:
        """An endpoint in the place of one that is left alone: the call has not left, so this is no retry."""
        for attempt in range(1, 2 * len(self.endpoints) + 1):
            endpoint = self._balancer.pick(call.wish, attempt, self.worker.now)
            if endpoint is not None and not endpoint.is_left_alone and not was_tried(call, endpoint):
                return endpoint
        return None

    def mirror(self, origin: "Downstream", timeout_s: float) -> "Mirror":
        """What copies of calls are sent through."""
        # Imported here: it is a client, and clients know clusters.
        from sidecar.proxy.mirror import Mirror

        known = self._mirrors.get(timeout_s)
        if known is None or not known.is_usable:
            known = self._mirrors[timeout_s] = Mirror(origin, self, timeout_s)
        return known

    def close(self) -> None:
        """The configuration names this cluster no more."""
        self.care.stop()
        if self.outliers is not None:
            self.outliers.stop()
        for endpoint in self.endpoints.values():
            if endpoint.checker is not None:
                endpoint.checker.stop()
        for endpoint in self.endpoints.values():
            endpoint.retire()


def _hash_name(config: EndpointConfig, *, hashes_hostname: bool) -> bytes:
    """By what an endpoint is found in consistent hashing: its label `hash_key`, else its name if that is wanted, else its address."""
    for key, value in config.labels:
        if key == "hash_key" and isinstance(value, str) and value:
            return value.encode()
    if hashes_hostname:
        return config.hostname.encode()
    return (f"[{config.host}]:{config.port}" if ":" in config.host else f"{config.host}:{config.port}").encode()


def _levels(endpoints: Iterable[Endpoint]) -> list[Level[Endpoint]]:
    """The endpoints by priority, and there by locality, in the order in which they came."""
    levels: list[dict[Locality, list[Endpoint]]] = []
    for endpoint in endpoints:
        while len(levels) <= endpoint.config.priority:
            levels.append({})
        levels[endpoint.config.priority].setdefault(endpoint.config.locality, []).append(endpoint)
    return [
        tuple(Group(place, members[-1].config.locality_weight, tuple(members)) for place, members in level.items())
        for level in levels
    ]
