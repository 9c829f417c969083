"""One ADS stream, state of the world: what was asked, what was sent, what to send next. No I/O, no clock.

Rules kept here (xDS protocol): a NACK is a request with `error_detail` and nothing else; a request with an old nonce is ignored; a changed
list of names is answered although the version did not change; CDS and LDS responses hold everything, EDS and RDS only what
changed. Of each type one response at a time is under way, so a slow node holds back nothing but itself.

Make before break: listeners and routes wait until clusters and their endpoints are acknowledged; a cluster that goes is
taken out only when the routes that no longer name it are acknowledged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from control_plane.translate.node import Node
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, Snapshot

WHOLE: Final = frozenset((CLUSTER, LISTENER))
"""Types of which a response holds all resources: absence deletes."""
MAX_NAMES: Final = 100_000
"""Names in one request."""


class BadRequest(Exception):
    """A request that breaks the protocol; the stream ends with this text."""


@dataclass(slots=True)
class Subscription:
    """One type on one stream."""

    type_url: str
    names: frozenset[str] | None = None
    """None is the wildcard."""
    nonce: str = ""
    is_answered: bool = True
    """False while a response is under way."""
    sent: dict[str, bytes] = field(default_factory=dict)
    again: set[str] = field(default_factory=set)
    """Names to send although they did not change."""
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

    def on_request(self, request: Any, now: float) -> None:
        """Take a request. Raises BadRequest. Ask `next_response` afterwards."""
        url = request.type_url
        if url not in ORDER:
            raise BadRequest(f"type {url} is not served; served: {', '.join(ORDER)}")
        if len(request.resource_names) > MAX_NAMES:
            raise BadRequest(f"{len(request.resource_names)} names; at most {MAX_NAMES} are taken")
        subscription = self.subscriptions.get(url)
        names = self._names(url, request.resource_names)
        if subscription is None:
            self.subscriptions[url] = Subscription(url, names)
            return
        if request.response_nonce != subscription.nonce:
            return
        subscription.is_answered = True
        subscription.lag_ms = (now - subscription.sent_at) * 1000 if subscription.version_sent else 0.0
        if request.HasField("error_detail"):
            subscription.version_nacked = subscription.version_sent
            subscription.nack_reason = request.error_detail.message
        else:
            subscription.version_acked = subscription.version_sent
            subscription.version_nacked = subscription.nack_reason = ""
        if names != subscription.names:
            new = (names or frozenset()) - (subscription.names or frozenset())
            subscription.again |= new
            subscription.names = names
            subscription.sent = {
                name: data for name, data in subscription.sent.items() if names is None or name in names
            }
        self._settle()

    def _names(self, url: str, names: Any) -> frozenset[str] | None:
        if url in WHOLE and (not names or "*" in names):
            return None
        return frozenset(names)

    def set_snapshot(self, snapshot: Snapshot) -> None:
        """From now on the node is to have this."""
        self._snapshot = snapshot
        self._settle()

    def next_response(self, now: float) -> bytes | None:
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
            if leaving and subscription.type_url == CLUSTER and not self._are_routes_settled():
                wanted |= leaving
            is_first = not subscription.version_sent
            return wanted if is_first or wanted != subscription.sent or subscription.again else None
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
        return subscription.is_answered and (
            bool(subscription.version_nacked) or subscription.sent == self._wanted(subscription)
        )

    def _are_routes_settled(self) -> bool:
        return self._is_settled(LISTENER) and self._is_settled(ROUTES)

    def _must_wait(self, url: str) -> bool:
        """Listeners and routes wait for the clusters that they may name, and for those clusters' endpoints."""
        if url not in (LISTENER, ROUTES):
            return False
        clusters = self.subscriptions.get(CLUSTER)
        if clusters is None or clusters.names is not None:
            return False
        assert self._snapshot is not None
        if clusters.version_nacked:
            return False
        has_all = clusters.is_answered and all(
            clusters.sent.get(name) == data for name, data in self._wanted(clusters).items()
        )
        if not has_all:
            return True
        endpoints = self.subscriptions.get(ENDPOINTS)
        needed = self._snapshot.types[ENDPOINTS].keys() & clusters.sent.keys()
        if endpoints is None or endpoints.names is None:
            return bool(needed)
        return not needed <= endpoints.names or not self._is_settled(ENDPOINTS)

    def _respond(self, subscription: Subscription, content: Mapping[str, bytes], now: float) -> bytes:
        assert self._snapshot is not None
        url = subscription.type_url
        self._nonces += 1
        subscription.nonce = str(self._nonces)
        subscription.is_answered = False
        subscription.again.clear()
        subscription.version_sent = self._snapshot.version
        subscription.sent_at = now
        if url == CLUSTER:
            self._warm(subscription.sent, content)
        subscription.sent = dict(content) if url in WHOLE else {**subscription.sent, **content}
        response = discovery_pb2.DiscoveryResponse(
            version_info=subscription.version_sent,
            type_url=url,
            nonce=subscription.nonce,
            resources=[any_pb2.Any(type_url=url, value=data) for _, data in sorted(content.items())],
        )
        data: bytes = response.SerializeToString()
        return data

    def _warm(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        """A cluster that changed waits for its endpoints, also for those that the node has already."""
        endpoints = self.subscriptions.get(ENDPOINTS)
        if endpoints is not None and endpoints.names is not None:
            changed = {name for name, data in after.items() if before.get(name) != data}
            endpoints.again |= changed & endpoints.names

    def _settle(self) -> None:
        """Note that the node has everything, if it has."""
        if self._snapshot is None or not self.subscriptions:
            return
        has_refused = any(item.version_nacked for item in self.subscriptions.values())
        if not has_refused and all(self._is_settled(url) for url in self.subscriptions):
            self.programmed = max(self.programmed, int(self._snapshot.version))
