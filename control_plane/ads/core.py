"""One ADS stream: what was asked, what was sent, what to send next. No I/O, no clock.

The rules of both variants of the protocol: a NACK is a request with `error_detail` and nothing else. Of each type one response at a time is
under way, so a slow node holds back nothing but itself. A response that is refused is sent again in halves, until what is bad stands alone:
it keeps nothing good from the node; only CDS and LDS in state of the world are whole, and refused as a whole. What is the variant's own
(`sotw`, `delta`): how requests are read as subscriptions, and how a response is written.

Make before break: listeners and routes wait until clusters and their endpoints are acknowledged. What goes, goes after what refers to it:
a cluster is taken out only when the routes that no longer name it are acknowledged, its endpoints only when it is gone itself.
"""

from collections.abc import Set
from typing import Any, Final, Protocol

from control_plane.ads.request import MAX_REASON, BadRequest, DeltaRequest, Request
from control_plane.ads.subscription import Answer, Part, Response, Subscription
from control_plane.translate.content import NO_NAMES, Content
from control_plane.translate.node import Node
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, Snapshot

MAX_RESPONSE_BYTES: Final = 3 * 1024 * 1024
"""Of resources in a response that is sent in part: gRPC's clients take messages up to 4 MiB. What is left comes with the next."""
_GOES_AFTER: Final = {ENDPOINTS: (CLUSTER,), CLUSTER: (LISTENER, ROUTES), ROUTES: (LISTENER,), LISTENER: ()}
"""Types whose resources may refer to those of a type: they let go first."""


class Variant(Protocol):
    """State of the world, or delta."""

    def first(self, request: Any, /) -> Subscription: ...
    def is_old(self, subscription: Subscription, request: Any, /) -> bool: ...
    def ask(self, subscription: Subscription, request: Any, /) -> None: ...
    def encode(self, subscription: Subscription, wanted: Content, part: Part, /) -> bytes: ...


class NodeStream:
    """What one node is told, and what it said of it."""

    def __init__(self, node: Node, variant: Variant) -> None:
        self.node = node
        self.subscriptions: dict[str, Subscription] = {}
        self.snapshot: Snapshot | None = None
        """What the node is to have; None before there is a state."""
        self.programmed = 0
        """The newest revision that the node has acknowledged in full."""
        self._variant = variant
        self._nonces = 0

    # -- what the node says ---------------------------------------------------------------------------

    def on_request(self, request: Request | DeltaRequest, now: float) -> Answer:
        """Take a request. Raises BadRequest. Ask `next_response` afterwards."""
        url = request.type_url
        if url not in ORDER:
            raise BadRequest(f'type "{url[:MAX_REASON]}" is not served; served: {", ".join(ORDER)}')
        subscription = self.subscriptions.get(url)
        if subscription is None:
            self._first(self._variant.first(request))
            return Answer.NONE
        if self._variant.is_old(subscription, request):
            return Answer.NONE
        answer = self._answered(subscription, request, now)
        self._variant.ask(subscription, request)
        self._forget_gone(subscription)
        self._settle()
        return answer

    def _first(self, subscription: Subscription) -> None:
        self.subscriptions[subscription.type_url] = subscription
        if self.snapshot is not None:
            subscription.believe(self._wanted(subscription), self.snapshot.version)
        clusters = self.subscriptions.get(CLUSTER)
        if subscription.type_url == ENDPOINTS and clusters is not None:
            self._warm(clusters.under_way)
        if subscription.version_sent:
            self._settle()

    def _answered(self, subscription: Subscription, request: Request | DeltaRequest, now: float) -> Answer:
        if subscription.is_answered or request.nonce != subscription.nonce:
            return Answer.NONE  # the answer came before, or is still to come; this request only changes names
        subscription.is_answered = True
        subscription.lag_ms = (now - subscription.sent_at) * 1000
        names, subscription.under_way = subscription.under_way, NO_NAMES
        if request.fault is not None:
            subscription.version_nacked = subscription.version_sent
            subscription.nack_reason = request.fault
            if subscription.is_whole or len(names) <= 1:
                subscription.refused |= names
            else:
                ordered = sorted(names)
                middle = len(ordered) // 2
                subscription.halves += (frozenset(ordered[:middle]), frozenset(ordered[middle:]))
            return Answer.NACK
        subscription.version_acked = subscription.version_sent
        if subscription.refused:
            subscription.refused -= names
        if subscription.is_whole or not (subscription.refused or subscription.halves):
            subscription.version_nacked = subscription.nack_reason = ""
        return Answer.ACK

    # -- what it is told ------------------------------------------------------------------------------

    def set_snapshot(self, snapshot: Snapshot) -> None:
        """From now on the node is to have this."""
        self.snapshot = snapshot
        for subscription in self.subscriptions.values():
            subscription.believe(self._wanted(subscription), snapshot.version)
            self._forget_gone(subscription)
        self._settle()

    def next_response(self, now: float) -> Response | None:
        """The next response to send, or None if there is nothing to say (now)."""
        if self.snapshot is None:
            return None
        for url in ORDER:
            subscription = self.subscriptions.get(url)
            if subscription is None or not subscription.is_answered or self._must_wait(url):
                continue
            part = self._whole(subscription) if subscription.is_whole else self._part(subscription)
            if part is not None:
                return self._respond(subscription, part, now)
        return None

    @property
    def is_quiet(self) -> bool:
        """True if no response is under way."""
        return all(subscription.is_answered for subscription in self.subscriptions.values())

    def _wanted(self, subscription: Subscription) -> Content:
        """What the node is to have of a type in the end."""
        assert self.snapshot is not None
        return self.snapshot.types[subscription.type_url].part(subscription.asked)

    def _whole(self, subscription: Subscription) -> Part | None:
        """What to send now of a type that is sent whole; None if nothing."""
        wanted, sent = self._wanted(subscription), subscription.sent
        differ = wanted.since(sent)
        leaving = {name: sent[name] for name in differ if name not in wanted}
        if leaving and self._may_go(subscription.type_url):
            leaving = {}
        elif leaving:
            differ = differ - leaving.keys()
        return Part(None, leaving) if subscription.is_due or differ else None

    def _part(self, subscription: Subscription) -> Part | None:
        """What to send now of a type that is sent in part; None if nothing."""
        wanted = self._wanted(subscription)
        if subscription.halves:
            half = subscription.halves[0]
            puts = {name for name in half if name in wanted}
            return Part(puts, gone=half - puts if subscription.removes else NO_NAMES)
        differ = wanted.since(subscription.sent)
        puts = {name for name in (*differ, *subscription.again) if name in wanted}
        gone: Set[str] = NO_NAMES
        must_answer = subscription.is_due
        if subscription.removes and not puts.issuperset((*differ, *subscription.again)):
            if differ and not subscription.nonce and not puts.issuperset(differ):
                # It came back and has what has gone meanwhile. It asks for all its types at once: with the answer to this response
                # it is known what may refer to that.
                must_answer = True
            elif self._may_go(subscription.type_url):
                gone = (subscription.again | differ) - puts
        return Part(_first(wanted, puts), gone=gone) if puts or gone or must_answer else None

    def _respond(self, subscription: Subscription, part: Part, now: float) -> Response:
        assert self.snapshot is not None
        url, wanted, sent = subscription.type_url, self._wanted(subscription), subscription.sent
        differ = wanted.since(sent)
        if part.puts is None:
            fresh = {name for name in differ if name in wanted}
            refused = {name for name in subscription.refused if name in wanted or name in part.stays}
            subscription.under_way = frozenset(fresh | refused)
            subscription.sent = {**wanted, **part.stays} if part.stays else wanted
        else:
            subscription.under_way = frozenset(part.puts | part.gone)
            subscription.halves = subscription.halves[1:]
            subscription.again -= subscription.under_way
            left = differ - subscription.under_way
            if not left or not (subscription.removes or any(name in wanted for name in left)):
                subscription.sent = wanted
            else:
                had = {name: data for name, data in sent.items() if name not in part.gone}
                subscription.sent = {**had, **{name: wanted[name] for name in part.puts}}
        if url == CLUSTER:
            self._warm(subscription.under_way - part.gone)
        self._nonces += 1
        subscription.nonce = str(self._nonces)
        subscription.is_answered = subscription.is_due = False
        subscription.version_sent = self.snapshot.version
        subscription.sent_at = now
        return Response(url, self._variant.encode(subscription, wanted, part))

    def _warm(self, clusters: frozenset[str]) -> None:
        """A cluster that changed waits for its endpoints, also for those that the node has already."""
        endpoints = self.subscriptions.get(ENDPOINTS)
        if endpoints is not None:
            known = endpoints.names if endpoints.asked is not None else self._wanted(endpoints).keys()
            endpoints.again |= clusters & known

    # -- how far it is ----------------------------------------------------------------------------------

    def _forget_gone(self, subscription: Subscription) -> None:
        """What was refused and is wanted no longer is no fault any more."""
        if self.snapshot is None or subscription.is_whole or not subscription.version_nacked:
            return
        wanted = self._wanted(subscription)
        subscription.refused = frozenset(name for name in subscription.refused if name in wanted)
        if not subscription.removes:
            subscription.halves = tuple(half for half in subscription.halves if any(name in wanted for name in half))
        if not subscription.refused and not subscription.halves and subscription.is_answered:
            subscription.version_nacked = subscription.nack_reason = ""

    def _left(self, subscription: Subscription) -> Set[str]:
        """What differs between what the node is to have and what it was sent."""
        wanted = self._wanted(subscription)
        differ = wanted.since(subscription.sent)
        is_held = not differ or not (
            subscription.is_whole or subscription.removes or any(map(wanted.__contains__, differ))
        )
        if is_held and subscription.sent is not wanted:
            subscription.sent = wanted  # as good as the older one, which can go, and cheap to compare with the next
        return differ

    def _has_all(self, url: str) -> bool:
        """True if the node has answered to all that it is to have of a type, or did not ask for it; it may have more."""
        subscription = self.subscriptions.get(url)
        if subscription is None:
            return True
        if not subscription.is_answered or subscription.halves:
            return False
        wanted = self._wanted(subscription)
        return not any(name in wanted for name in (*self._left(subscription), *subscription.again))

    def _is_settled(self, url: str) -> bool:
        """True if there is nothing more to say of a type until something changes."""
        subscription = self.subscriptions.get(url)
        if subscription is None:
            return True
        if not subscription.is_answered or subscription.is_due:
            return False
        if subscription.is_whole:
            return bool(subscription.version_nacked) or not self._left(subscription)
        # In state of the world, what is not in the snapshot any more stays with the node until it asks for it no longer.
        return self._has_all(url) and not (subscription.removes and (self._left(subscription) or subscription.again))

    def _may_go(self, url: str) -> bool:
        """True if what may refer to a type's resources is that of the snapshot; where some was refused, the node has an older one."""
        return all(
            self._is_settled(other) and not (other in self.subscriptions and self.subscriptions[other].version_nacked)
            for other in _GOES_AFTER[url]
        )

    def _must_wait(self, url: str) -> bool:
        """Listeners and routes wait for the clusters that they may name, and for those clusters' endpoints."""
        if url not in (LISTENER, ROUTES):
            return False
        clusters = self.subscriptions.get(CLUSTER)
        if clusters is None or not clusters.is_everything:
            return False
        if not clusters.is_answered:
            return True
        if clusters.version_nacked:
            return False  # a refused cluster must not hold back all the rest for ever
        return not self._has_all(CLUSTER) or not self._has_endpoints()

    def _has_endpoints(self) -> bool:
        """True if the node has asked for the endpoints of its clusters and has them; they are not asked for by a wildcard."""
        assert self.snapshot is not None
        clusters, endpoints = self.subscriptions.get(CLUSTER), self.subscriptions.get(ENDPOINTS)
        if clusters is None or not clusters.is_everything or clusters.version_nacked:
            return True
        asked = endpoints.asked if endpoints is not None else NO_NAMES
        if asked is not None and not self.snapshot.types[ENDPOINTS].covers(clusters.sent, asked):
            return False
        return self._has_all(ENDPOINTS)

    def _settle(self) -> None:
        """Note that the node has everything, if it has."""
        if self.snapshot is None or not self.subscriptions:
            return
        has_refused = any(item.version_nacked for item in self.subscriptions.values())
        if not has_refused and all(map(self._is_settled, self.subscriptions)) and self._has_endpoints():
            self.programmed = max(self.programmed, int(self.snapshot.version))


def _first(wanted: Content, names: set[str]) -> set[str]:
    """Of these resources, as many as one response holds; at least one."""
    if len(names) <= 1 or sum(len(wanted[name]) for name in names) <= MAX_RESPONSE_BYTES:
        return names
    left = MAX_RESPONSE_BYTES
    first: set[str] = set()
    for name in sorted(names):
        left -= len(wanted[name])
        if left < 0 and first:
            break
        first.add(name)
    return first
