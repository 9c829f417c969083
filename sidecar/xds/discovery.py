"""How the ADS client asks and what it hears, in both variants of the protocol: state of the world, and delta.

In state of the world a request names all that is wanted, and CDS and LDS responses hold everything. In delta both say only what changed:
names come and go, and a response tells what is new and what has gone. On a new stream the node says which versions it has, so that nothing is
sent that it has already.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

_PREFIX: Final = "type.googleapis.com/envoy.config."
CLUSTER: Final = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS: Final = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = _PREFIX + "listener.v3.Listener"
ROUTES: Final = _PREFIX + "route.v3.RouteConfiguration"
WILDCARD_TYPES: Final = (CLUSTER, LISTENER)
"""Asked for without names. Endpoints and routes are what clusters and listeners name: they go when nothing names them."""

_SERVICE: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
Resources = dict[str, tuple[bytes, Any]]
"""By name: packed bytes and what they were converted to."""


@dataclass(slots=True)
class Subscription:
    """One type of resource: what is asked for, what is in force."""

    type_url: str
    names: tuple[str, ...] = ()
    """Empty is the wildcard of CDS and LDS; EDS and RDS with no names are not asked for."""
    version: str = ""
    nonce: str = ""
    resources: Resources = field(default_factory=dict)
    """What is in force; what did not change is not converted again."""
    is_asked: bool = False
    """On this stream."""
    asked: tuple[str, ...] = ()
    """The names that this stream knows of (delta)."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the resources that came by delta."""

    def begin(self) -> None:
        """On a new stream nothing has been said yet."""
        self.nonce, self.is_asked, self.asked = "", False, ()


class Heard(NamedTuple):
    """What a response says."""

    version: str
    packed: tuple[Any, ...]
    """Its resources."""
    versions: Mapping[str, str] = {}
    """Theirs, by name (delta)."""
    gone: frozenset[str] = frozenset()
    """Names of which there is nothing any more (delta)."""


class Variant(Protocol):
    """State of the world, or delta."""

    method: str
    request_type: Any
    response_type: Any

    def request(self, subscription: Subscription, node: Any, fault: str) -> Any:
        """The first request of a type on a stream, an ACK, a NACK (`fault`), or one with other names."""
        ...

    def heard(self, response: Any) -> Heard: ...

    def merged(self, subscription: Subscription, fresh: Resources, heard: Heard) -> Resources:
        """What there is after a response."""
        ...

    def accepted(self, subscription: Subscription, heard: Heard) -> None:
        """A response is in force."""
        ...


class StateOfTheWorld:
    """StreamAggregatedResources."""

    method = _SERVICE + "StreamAggregatedResources"
    request_type = discovery_pb2.DiscoveryRequest
    response_type = discovery_pb2.DiscoveryResponse

    def request(self, subscription: Subscription, node: Any, fault: str) -> Any:
        return self.request_type(
            type_url=subscription.type_url,
            version_info=subscription.version,
            response_nonce=subscription.nonce,
            resource_names=subscription.names,
            node=node,
            error_detail=_status(fault),
        )

    def heard(self, response: Any) -> Heard:
        return Heard(response.version_info, tuple(response.resources))

    def merged(self, subscription: Subscription, fresh: Resources, heard: Heard) -> Resources:
        # CDS and LDS hold the whole world; EDS and RDS may be partial.
        return fresh if subscription.type_url in WILDCARD_TYPES else {**subscription.resources, **fresh}

    def accepted(self, subscription: Subscription, heard: Heard) -> None:
        subscription.version = heard.version


class Delta:
    """DeltaAggregatedResources."""

    method = _SERVICE + "DeltaAggregatedResources"
    request_type = discovery_pb2.DeltaDiscoveryRequest
    response_type = discovery_pb2.DeltaDiscoveryResponse

    def request(self, subscription: Subscription, node: Any, fault: str) -> Any:
        names, asked = set(subscription.names), set(subscription.asked)
        request = self.request_type(
            type_url=subscription.type_url,
            resource_names_subscribe=sorted(names - asked),
            resource_names_unsubscribe=sorted(asked - names),
            response_nonce=subscription.nonce,
            node=node,
            error_detail=_status(fault),
        )
        if not subscription.is_asked:
            request.initial_resource_versions.update(self._held(subscription))
        subscription.asked, subscription.nonce = subscription.names, ""  # a nonce is answered once
        return request

    def heard(self, response: Any) -> Heard:
        return Heard(
            # Only for people, so a control plane may leave it out.
            response.system_version_info or "unnamed",
            tuple(item.resource for item in response.resources),
            {item.name: item.version for item in response.resources},
            frozenset(response.removed_resources),
        )

    def merged(self, subscription: Subscription, fresh: Resources, heard: Heard) -> Resources:
        if subscription.type_url not in WILDCARD_TYPES:
            return {**subscription.resources, **fresh}
        # What has no version was not said to be there (it was kept on disk, say): if it still is, it comes now.
        known = {name: item for name, item in subscription.resources.items() if name in subscription.versions}
        return {name: item for name, item in {**known, **fresh}.items() if name not in heard.gone}

    def accepted(self, subscription: Subscription, heard: Heard) -> None:
        subscription.version = heard.version
        subscription.versions = self._held(subscription) | _of(subscription.resources, heard.versions)

    def _held(self, subscription: Subscription) -> dict[str, str]:
        return _of(subscription.resources, subscription.versions)


def _of(names: Iterable[str], versions: Mapping[str, str]) -> dict[str, str]:
    return {name: versions[name] for name in names if name in versions}


def _status(fault: str) -> Any:
    return status_pb2.Status(code=3, message=fault) if fault else None
