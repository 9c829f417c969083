"""One ADS stream, state of the world: what was asked, what was sent, what to send next. No I/O, no clock.

Rules kept here (xDS protocol): the first request with the nonce of a response answers it, a NACK is one with `error_detail` and nothing
else; a request with an old nonce is ignored; a changed list of names is answered although the version did not change; CDS and LDS
responses hold everything, EDS and RDS only what changed. Of each type one response at a time is under way, so a slow node holds back
nothing but itself. An EDS or RDS response that is refused is sent again in halves, until what is bad stands alone: it keeps nothing good
from the node.

Make before break: listeners and routes wait until clusters and their endpoints are acknowledged; a cluster that goes is
taken out only when the routes that no longer name it are acknowledged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from control_plane.translate.node import Node
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, Snapshot

WHOLE: Final = frozenset((CLUSTER, LISTENER))
"""Types of which a response holds all resources: absence deletes."""
WILDCARD: Final = "*"
MAX_NAMES: Final = 100_000
"""Names in one request."""
MAX_REASON: Final = 4096
"""Characters of a node's own words that are kept."""


class BadRequest(Exception):
    """A request that breaks the protocol; the stream ends with this text."""


class Response(NamedTuple):
    """A response, ready to be sent."""

    type_url: str
    data: bytes


class Answer(Enum):
    """What a request says of the last response of its type."""

    NONE = "none"
    ACK = "ack"
    NACK = "nack"


@dataclass(slots=True)
class Subscription:
    """One type on one stream."""

    type_url: str
    names: frozenset[str] | None
    """None is the wildcard."""
    has_named: bool
    """Names were given once: from then on no names means nothing, and only `*` means everything."""
    nonce: str = ""
    is_answered: bool = True
    """False while a response is under way."""
    is_due: bool = True
    """A response is owed although nothing changed (types that are sent whole)."""
    sent: dict[str, bytes] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    """Names to send although they did not change (types that are sent in part)."""
    under_way: frozenset[str] = frozenset()
    """What the response under way is about: all names in it, or what is new to the node in it (types that are sent whole)."""
    refused: set[str] = field(default_factory=set)
    """What the node refused in the form that it was sent last; it has an older one, or none."""
    halves: list[frozenset[str]] = field(default_factory=list)
    """Parts of a refused response, each to be sent alone (types that are sent in part)."""
    version_sent: str = ""
    version_acked: str = ""
    version_nacked: str = ""
    nack_reason: str = ""
    sent_at: float = 0.0
    lag_ms: float = 0.0


class NodeStream:
    """What one node is told, and what it said of it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.subscriptions: dict[str, Subscription] = {}
        self.programmed = 0
        """The newest revision that the node has acknowledged in full."""
        self._snapshot: Snapshot | None = None
        self._nonces = 0

    # -- what the node says ---------------------------------------------------------------------------

    def on_request(self, request: Any, now: float) -> Answer:
        """Take a request. Raises BadRequest. Ask `next_response` afterwards."""
        url = request.type_url
        if url not in ORDER:
            raise BadRequest(f'type "{url[:MAX_REASON]}" is not served; served: {", ".join(ORDER)}')
        if len(request.resource_names) > MAX_NAMES:
            raise BadRequest(f"{len(request.resource_names)} names; at most {MAX_NAMES} are taken")
        subscription = self.subscriptions.get(url)
        if subscription is None:
            given = request.resource_names
            is_everything = url in WHOLE and (not given or WILDCARD in given)
            names = None if is_everything else frozenset(given)
            self.subscriptions[url] = Subscription(url, names, bool(given))
            return Answer.NONE
        if request.response_nonce != subscription.nonce:
            return Answer.NONE
        answer = self._answered(subscription, request, now)
        self._subscribe(subscription, request.resource_names)
        self._forget_gone(subscription)
        self._settle()
        return answer

    def _answered(self, subscription: Subscription, request: Any, now: float) -> Answer:
        if subscription.is_answered:
            return Answer.NONE  # the answer came before; this one only changes names
        subscription.is_answered = True
        subscription.lag_ms = (now - subscription.sent_at) * 1000
        names, subscription.under_way = subscription.under_way, frozenset()
        if request.HasField("error_detail"):
            subscription.version_nacked = subscription.version_sent
            subscription.nack_reason = request.error_detail.message[:MAX_REASON]
            if subscription.type_url in WHOLE or len(names) == 1:
                subscription.refused |= names
            else:
                ordered = sorted(names)
                middle = len(ordered) // 2
                subscription.halves += [frozenset(ordered[:middle]), frozenset(ordered[middle:])]
            return Answer.NACK
        subscription.version_acked = subscription.version_sent
        subscription.refused -= names
        if subscription.type_url in WHOLE or not (subscription.refused or subscription.halves):
            subscription.version_nacked = subscription.nack_reason = ""
        return Answer.ACK

    def _subscribe(self, subscription: Subscription, given: Any) -> None:
        subscription.has_named |= bool(given)
        is_whole = subscription.type_url in WHOLE
        is_everything = is_whole and (WILDCARD in given or not (given or subscription.has_named))
        names = None if is_everything else frozenset(given)
        if names == subscription.names:
            return
        new = (names or frozenset()) - (subscription.names or frozenset())
        subscription.is_due |= is_whole and (names is None or bool(new))
        subscription.names = names
        if names is not None:
            subscription.again &= names
            subscription.sent = {name: data for name, data in subscription.sent.items() if name in names}

    # -- what it is told ------------------------------------------------------------------------------

    def set_snapshot(self, snapshot: Snapshot) -> None:
        """From now on the node is to have this."""
        self._snapshot = snapshot
        for subscription in self.subscriptions.values():
            self._forget_gone(subscription)
        self._settle()

    def _forget_gone(self, subscription: Subscription) -> None:
        """What was refused and is wanted no longer is no fault any more."""
        if self._snapshot is None or subscription.type_url in WHOLE or not subscription.version_nacked:
            return
        wanted = self._wanted(subscription).keys()
        subscription.refused &= wanted
        subscription.halves = [half for half in subscription.halves if half & wanted]
        if not subscription.refused and not subscription.halves and subscription.is_answered:
            subscription.version_nacked = subscription.nack_reason = ""

    def next_response(self, now: float) -> Response | None:
        """The next response to send, or None if there is nothing to say (now)."""
        if self._snapshot is None:
            return None
        for url in ORDER:
            subscription = self.subscriptions.get(url)
            if subscription is None or not subscription.is_answered or self._must_wait(url):
                continue
            content = self._content(subscription)
            if content is None:
                continue
            return self._respond(subscription, content, now)
        return None

    def _wanted(self, subscription: Subscription) -> dict[str, bytes]:
        """What the node is to have of a type in the end."""
        assert self._snapshot is not None
        there = self._snapshot.types[subscription.type_url]
        if subscription.names is None:
            return dict(there)
        return {name: there[name] for name in subscription.names if name in there}

    def _content(self, subscription: Subscription) -> Mapping[str, bytes] | None:
        """What to send of a type now; None if nothing."""
        wanted = self._wanted(subscription)
        if subscription.type_url in WHOLE:
            leaving = {name: data for name, data in subscription.sent.items() if name not in wanted}
            if leaving and subscription.type_url == CLUSTER and not self._has_left_routes():
                wanted |= leaving
            return wanted if subscription.is_due or wanted != subscription.sent else None
        for half in subscription.halves:
            return {name: wanted[name] for name in half if name in wanted}
        changed = {
            name: data
            for name, data in wanted.items()
            if subscription.sent.get(name) != data or name in subscription.again
        }
        return changed or None

    def _is_settled(self, url: str) -> bool:
        """True if the node has answered to all that it is to have of a type, or did not ask for it."""
        subscription = self.subscriptions.get(url)
        if subscription is None:
            return True
        if not subscription.is_answered:
            return False
        wanted = self._wanted(subscription)
        if url in WHOLE:
            return bool(subscription.version_nacked) or subscription.sent == wanted
        # What is not in the snapshot any more stays with the node until it asks for it no longer: nothing can take it away.
        is_all_sent = all(subscription.sent.get(name) == data for name, data in wanted.items())
        return is_all_sent and not subscription.halves and not subscription.again & wanted.keys()

    def _has_left_routes(self) -> bool:
        """True if the node's listeners and routes are those of the snapshot; with refused ones it has older ones."""
        return all(
            self._is_settled(url) and not (url in self.subscriptions and self.subscriptions[url].version_nacked)
            for url in (LISTENER, ROUTES)
        )

    def _must_wait(self, url: str) -> bool:
        """Listeners and routes wait for the clusters that they may name, and for those clusters' endpoints."""
        if url not in (LISTENER, ROUTES):
            return False
        clusters = self.subscriptions.get(CLUSTER)
        if clusters is None or clusters.names is not None:
            return False
        assert self._snapshot is not None
        if not clusters.is_answered:
            return True
        if clusters.version_nacked:
            return False  # a refused cluster must not hold back all the rest for ever
        if any(clusters.sent.get(name) != data for name, data in self._wanted(clusters).items()):
            return True
        return not self._has_endpoints()

    def _has_endpoints(self) -> bool:
        """True if the node has asked for the endpoints of its clusters and has them; they are not asked for by a wildcard."""
        assert self._snapshot is not None
        clusters, endpoints = self.subscriptions.get(CLUSTER), self.subscriptions.get(ENDPOINTS)
        if clusters is None or clusters.names is not None or clusters.version_nacked:
            return True
        needed = self._snapshot.types[ENDPOINTS].keys() & clusters.sent.keys()
        asked = endpoints.names if endpoints is not None else None
        return needed <= (asked or frozenset()) and self._is_settled(ENDPOINTS)

    def _respond(self, subscription: Subscription, content: Mapping[str, bytes], now: float) -> Response:
        assert self._snapshot is not None
        url = subscription.type_url
        changed = {name for name, data in content.items() if subscription.sent.get(name) != data}
        if url in WHOLE:
            subscription.under_way = frozenset(changed | (subscription.refused & content.keys()))
        else:
            subscription.under_way = frozenset(content)
            subscription.halves = subscription.halves[1:]
        if url == CLUSTER:
            self._warm(subscription.under_way)
        self._nonces += 1
        subscription.nonce = str(self._nonces)
        subscription.is_answered = subscription.is_due = False
        subscription.again -= content.keys()
        subscription.version_sent = self._snapshot.version
        subscription.sent_at = now
        subscription.sent = dict(content) if url in WHOLE else {**subscription.sent, **content}
        response = discovery_pb2.DiscoveryResponse(
            version_info=subscription.version_sent,
            type_url=url,
            nonce=subscription.nonce,
            resources=[any_pb2.Any(type_url=url, value=data) for _, data in sorted(content.items())],
        )
        return Response(url, response.SerializeToString())

    def _warm(self, clusters: frozenset[str]) -> None:
        """A cluster that changed waits for its endpoints, also for those that the node has already."""
        endpoints = self.subscriptions.get(ENDPOINTS)
        if endpoints is not None and endpoints.names is not None:
            endpoints.again |= clusters & endpoints.names

    def _settle(self) -> None:
        """Note that the node has everything, if it has."""
        if self._snapshot is None or not self.subscriptions:
            return
        has_refused = any(item.version_nacked for item in self.subscriptions.values())
        if not has_refused and all(map(self._is_settled, self.subscriptions)) and self._has_endpoints():
            self.programmed = max(self.programmed, int(self._snapshot.version))
