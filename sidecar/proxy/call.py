"""One call on its way through: what ties a downstream stream to an upstream stream."""

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sidecar.http2.connection import Stream
from sidecar.http2.frames import ErrorCode
from sidecar.policy.balance import ANY, Wish
from sidecar.proxy import breaking
from sidecar.proxy import status as grpc_status
from sidecar.proxy.copies import Copy
from sidecar.proxy.decision import Decision, Plan
from sidecar.proxy.direct import DirectAnswer
from sidecar.proxy.outlier import TOO_LATE
from sidecar.proxy.status import Status
from sidecar.proxy.timers import Timed

if TYPE_CHECKING:
    from sidecar.proxy.attempts import Attempts
    from sidecar.proxy.cluster import Cluster, Endpoint, Load
    from sidecar.proxy.downstream import Downstream
    from sidecar.proxy.upstream import Upstream

NO_CLAIMS: Final[dict[str, Any]] = {}
"""Of a call about whose caller no step found out anything; never filled."""
EARLY_S: Final = 0.001
"""What `grpc-timeout` loses where it is written anew: an upstream's deadline may be over by so much before ours."""
SHORTEST_HOLD_S: Final = 0.01
"""A call that was held for less is handed on with the `grpc-timeout` that it came with."""


class Call(Timed):
    """From its request's headers to its status. Ends exactly once, in `finish`."""

    __slots__ = (
        "attempts",
        "body",
        "body_size",
        "claims",
        "cluster",
        "copy",
        "deadline",
        "down",
        "down_stream",
        "endpoint",
        "entered",
        "flags",
        "held",
        "http_status",
        "is_active",
        "is_done",
        "is_request_over",
        "is_responded",
        "is_rival",
        "load",
        "plan",
        "pushback_s",
        "response_fields",
        "sent_at",
        "started",
        "trailers",
        "uncredited",
        "up",
        "up_stream",
        "wish",
    )

    def __init__(self, down: "Downstream", stream: Stream, plan: Plan, now: float, ended: bool) -> None:
        self.down = down
        self.down_stream = stream
        self.plan = plan
        self.started = now
        self.is_request_over = ended
        self.body: list[bytes] | None = None if ended else []
        """The request's data so far, for a first or another try; None once it cannot be tried again."""
        self.body_size = 0
        self.uncredited = 0
        """Bytes for which the sender got no window back yet, because no try has taken them."""
        self.trailers: bytes | None = None
        self.claims: dict[str, Any] = NO_CLAIMS
        """What steps found out about the caller, by the filter's name (Envoy: dynamic metadata)."""
        self.is_responded = False
        self.http_status = 0
        """Of the response; 0 before it."""
        self.is_done = False
        self.is_rival = False
        """A further try beside a call's own (`sidecar.proxy.hedge`)."""
        self.is_active = True
        """Data or headers came since `QuietCalls` asked last."""
        self.cluster: Cluster | None = None
        self.endpoint: Endpoint | None = None
        self.up: Upstream | None = None
        self.up_stream: Stream | None = None
        self.entered = 0
        """Steps of its decision that it has come to."""
        self.held: list[tuple[object, object]] | None = None
        """What steps keep for the call until it is over: step, and what it holds; None if nothing."""
        self.flags = ""
        """Response flags of what steps did to it, whatever its end is."""
        self.response_fields = b""
        """Encoded fields that steps add to the response's headers."""
        self.load: Load | None = None
        """What it counts towards; None before it came to a cluster."""
        self.attempts: Attempts | None = None
        """None while there is nothing to say about its tries."""
        self.copy: Copy | None = None
        """Of the request, while it goes by; None if nobody gets one."""
        self.deadline = 0.0
        self.wish: Wish = ANY
        """What it asks of the balancer."""
        self.sent_at = 0.0
        """When this try was given to an endpoint."""
        self.pushback_s = 0.0
        """How long the answer asks callers to stay away (`grpc-retry-pushback-ms`)."""

    def start(self) -> None:
        """Pass the steps, choose a cluster, go."""
        if self.plan.timeout_s:
            self.deadline = self.started + self.plan.timeout_s
            self.down.worker.timers.add(self)
        self._go()

    def resume(self) -> None:
        """A step that held the call lets it go on."""
        if not self.is_done:
            self.count_down()
            self._go()

    def _go(self) -> None:
        decision = self.plan.decision
        steps = decision.steps
        while self.entered < len(steps):
            step = steps[self.entered]
            self.entered += 1
            if not step.enter(self):
                return
        cluster = decision.cluster
        place = 0
        if cluster is None:
            if decision.reply is not None:
                self.answer(*decision.reply)
                return
            if decision.direct is not None:
                self.answer_directly(decision.direct)
                return
            place = decision.draw(self.down.worker.chance.random())
            cluster = decision.shares[place][1]
            if cluster is None:
                self.answer(Status.UNAVAILABLE, "one of the route's clusters is not known here (flag NC)", "NC")
                return
        if self.is_request_over and self.plan.response_timeout_s:
            self._await_response()
        if self.plan.keyed is not None and cluster.reads_wishes:
            self.wish = self.plan.keyed.wish(self, place)
        if decision.mirrors:
            self._begin_copy(decision)
        cluster.start(self)

    def _begin_copy(self, decision: Decision) -> None:
        """Copy the request for whoever gets this call too."""
        chance = self.down.worker.chance
        targets = [target for target in decision.mirrors if target.share >= 1.0 or chance.random() < target.share]
        if targets:
            self.copy = Copy(self.down, targets, self.plan.block, list(self.body or ()))
            if self.is_request_over:
                self._send_copy()

    def _send_copy(self) -> None:
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.send(self.trailers)

    def _await_response(self) -> None:
        """The request is whole: from here on the route's time-out runs (Envoy: route.v3.RouteAction.timeout)."""
        worker = self.down.worker
        deadline = worker.now + self.plan.response_timeout_s
        if not self.deadline or deadline < self.deadline:
            self.deadline = deadline
            worker.timers.add(self)

    def on_body(self, payload: bytes, credit: int, ended: bool) -> None:
        """Request data from the client."""
        up_stream = self.up_stream
        body = self.body
        self.is_active = True
        if ended:
            self.is_request_over = True
            if self.plan.response_timeout_s:
                self._await_response()
        if self.attempts is not None:
            self._note_request(ended)
        if body is not None:
            body.append(payload)
            self.body_size += len(payload)
            if up_stream is not None and self.body_size > self.plan.decision.replay_limit:
                self.body = None
        if self.copy is not None:
            self.copy.add(payload)
            if ended:
                self._send_copy()
        if up_stream is None:
            self.uncredited += credit
            return
        assert self.up is not None
        if self.up.conn.send_data(up_stream, payload, credit, ended):
            self.down.conn.credit(self.down_stream, credit)
        self.up.mark()

    def on_trailers(self, block: bytes) -> None:
        """Request trailers from the client (not used by gRPC, legal in HTTP/2)."""
        self.is_request_over = True
        if self.plan.response_timeout_s:
            self._await_response()
        if self.attempts is not None:
            self._note_request(True)
        self.trailers = block
        if self.copy is not None:
            self._send_copy()
        if self.up_stream is not None and self.up is not None:
            self.up.conn.send_headers(self.up_stream, block, True)
            self.up.mark()

    def _note_request(self, ended: bool) -> None:
        """More of the request came, while its tries are timed."""
        assert self.attempts is not None
        self.attempts.heard(self.down.worker.now)
        if ended and self.up_stream is not None:
            self.attempts.begin_try()

    def send_to(self, up: "Upstream") -> None:
        """Send what there is of the request on a connection that has room."""
        self.up = up
        body = self.body
        conn = up.conn
        stream = conn.open_stream(self.plan.block, self.is_request_over and not body and self.trailers is None)
        # Before the data: some of it may leave after having waited, and `on_sent` tells the stream's call.
        stream.call = self
        self.up_stream = stream
        if self.endpoint is not None and self.endpoint.record is not None:
            self.endpoint.record.on_reached()
        if body:
            credit, self.uncredited = self.uncredited, 0
            last = len(body) - 1
            for number, payload in enumerate(body):
                ended = number == last and self.is_request_over and self.trailers is None
                share = credit if number == last else 0
                if conn.send_data(stream, payload, share, ended) and share:
                    self.down.conn.credit(self.down_stream, share)
                    self.down.mark()
            if self.body_size > self.plan.decision.replay_limit:
                self.body = None
        if self.trailers is not None:
            conn.send_headers(stream, self.trailers, True)
        if self.attempts is not None:
            self.attempts.begin_try()
        up.mark()

    def count_down(self) -> None:
        """The call was held here: the time that is left of its deadline is what goes upstream."""
        plan = self.plan
        if plan.timeout_s:
            held = monotonic() - self.started
            if held >= SHORTEST_HOLD_S:
                self.plan = plan.after(held)

    def is_overdue(self) -> bool:
        """True if the deadline is over, by any clock on the way."""
        return 0.0 < self.deadline <= self.down.worker.now + EARLY_S

    def on_deadline(self) -> None:
        """The time that the caller gave, or the route allows, is over."""
        self.deadline = 0.0
        if not self.is_done:
            spent = monotonic() - self.started
            plan = self.plan
            cluster = self.cluster.name if self.cluster else "?"
            if plan.timeout_s and spent + EARLY_S >= plan.timeout_s:
                limit = f"the caller's deadline of {plan.timeout_s:g} s"
            else:
                limit = f"the route's time-out of {plan.response_timeout_s:g} s"
            if (
                self.up is not None
                and not self.is_responded
                and self.endpoint is not None
                and self.endpoint.record is not None
            ):
                self.endpoint.observe_failure(TOO_LATE)
            text = f'no answer from "{cluster}" within {limit} (after {spent:.3f} s, flag UT)'
            self.answer(Status.DEADLINE_EXCEEDED, text, "UT")

    def on_quiet(self, timeout_s: float) -> None:
        """Neither side has sent anything for too long."""
        text = f"neither side has sent anything for {timeout_s:g} s (flag SI)"
        if self.is_request_over:
            self.answer(Status.UNAVAILABLE, text, "SI", 504)
        else:
            self.answer(Status.UNKNOWN, text, "SI", 408)

    def overrun(self) -> None:
        """The client takes its answers so slowly that we would have to keep too much of them."""
        if not self.is_done:
            self.down.conn.reset(self.down_stream, ErrorCode.ENHANCE_YOUR_CALM)
            self.down.mark()
            self.finish(Status.RESOURCE_EXHAUSTED, "OM")

    def answer(self, status: Status, message: str, flag: str, http_status: int = 0, fields: bytes = b"") -> None:
        """End the call with an answer of the mesh's own; once a response has begun, with a reset.

        What is not gRPC gets `http_status`, or what Envoy gives for the flag. `fields` are added to its headers, encoded.
        """
        if self.is_done:
            return
        stream = self.down_stream
        conn = self.down.conn
        if not stream.is_dead:
            if self.is_responded:
                conn.reset(stream, ErrorCode.CANCEL if status is Status.DEADLINE_EXCEEDED else ErrorCode.INTERNAL_ERROR)
            elif self.plan.decision.is_grpc:
                block = self._head(200) + grpc_status.trailers_only(status, message, flag)
                conn.send_headers(stream, block + self.response_fields + fields, True)
            else:
                text = message.encode() + b"\n"
                http_status = http_status or grpc_status.HTTP_OF_FLAG[flag.partition(",")[0]]
                is_head = self.plan.decision.is_head
                block = self._head(http_status) + grpc_status.plain_headers(len(text), flag)
                conn.send_headers(stream, block + self.response_fields + fields, is_head)
                if not is_head:
                    conn.send_data(stream, text, 0, True)
            self.down.mark()
        self.finish(status, flag)

    def _head(self, http_status: int, fields: bytes = b"") -> bytes:
        """Status, and what the route adds to responses, in front of an answer that is made here."""
        head = grpc_status.status_field(http_status) + fields
        edit = self.plan.decision.response_edit
        return edit.apply(head) if edit is not None else head

    def answer_directly(self, direct: DirectAnswer) -> None:
        """End the call with the route's own answer."""
        stream = self.down_stream
        conn = self.down.conn
        decision = self.plan.decision
        status = grpc_status.of_http(direct.http_status)
        if decision.is_grpc:
            message = (
                direct.body.decode("utf-8", "replace") or f"the route itself answers with HTTP {direct.http_status}"
            )
            block = self._head(200, direct.fields) + grpc_status.trailers_only(status, message, "")
        else:
            block = self._head(direct.http_status, direct.fields)
            block += grpc_status.plain_headers(len(direct.body), "")
        block += self.response_fields
        has_body = bool(direct.body) and not decision.is_grpc and not decision.is_head
        conn.send_headers(stream, block, not has_body)
        if has_body:
            conn.send_data(stream, direct.body, 0, True)
        self.down.mark()
        self.finish(status if decision.is_grpc or direct.http_status >= 300 else Status.OK, "")

    def detach(self, code: int) -> None:
        """Leave the upstream stream; reset it if it is still open."""
        up, stream = self.up, self.up_stream
        self.up = None
        self.up_stream = None
        if stream is not None and up is not None:
            stream.call = None
            self.down.conn.credit(self.down_stream, up.conn.take_unsent(stream))
            self.down.conn.take_unsent(
                self.down_stream
            )  # `Upstream` gave it back to the connection when it had to wait
            if not stream.is_dead and not (stream.remote_closed and stream.local_closed):
                up.conn.reset(stream, code)
                up.mark()
        endpoint = self.endpoint
        if endpoint is not None:
            endpoint.active -= 1
            if up is None:
                endpoint.forget(self)

    def finish(self, status: int, flag: str) -> None:
        """The call is over: count it and let go of everything."""
        if self.is_done:
            return
        self.is_done = True
        self.deadline = 0.0
        self.down_stream.call = None
        self.down.calls -= 1
        endpoint = self.endpoint
        cluster = self.cluster
        now = self.down.worker.now
        if self.attempts is not None:
            flag = self.attempts.end(flag)
        if self.flags:
            flag = f"{flag},{self.flags}" if flag else self.flags
        if self.load is not None:
            self.load.active -= 1
        if cluster is not None:
            stats = endpoint.stats if endpoint is not None else cluster.stats
            if cluster.times_answers and endpoint is not None:
                cluster.score(self, endpoint, status)
        else:
            stats = self.down.stats
        stats.observe(status, flag, now - self.started)
        if cluster is not None and cluster.breaker is not None:
            breaking.leave(cluster.breaker, self, status, flag)
        if self.plan.decision.has_watchers:
            for step in self.plan.decision.steps[: self.entered]:
                if step.watches_end:
                    step.leave(self, status)
        self.detach(ErrorCode.CANCEL)
        self.endpoint = None
        if self.uncredited:
            self.down.conn.credit(self.down_stream, self.uncredited)
            self.uncredited = 0
        self.down.on_call_end(self.down_stream)
