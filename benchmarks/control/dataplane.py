"""A simulated data plane on one ADS stream: it asks for everything, takes everything and ACKs at once. Bytes in, bytes out; no I/O.

It asks as Envoy does: clusters and listeners by the wildcard, then the endpoints and routes that those name. What all nodes of a process have
in common is kept once (`Shared`), so that ten thousand of them fit and one response costs microseconds: of a response of endpoints or
routes only the last bytes are read (`tail`), where every serialiser that writes fields in order puts type and nonce; `DiscoveryResponse` itself
is the plain version, and the way out for all others.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import discovery_pb2

_PREFIX: Final = "type.googleapis.com/envoy.config."
CLUSTER: Final = _PREFIX + "cluster.v3.Cluster"
ENDPOINTS: Final = _PREFIX + "endpoint.v3.ClusterLoadAssignment"
LISTENER: Final = _PREFIX + "listener.v3.Listener"
ROUTES: Final = _PREFIX + "route.v3.RouteConfiguration"
MESSAGES: Final[dict[str, Any]] = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
    ROUTES: route_pb2.RouteConfiguration,
}
PARENTS: Final = {CLUSTER: ENDPOINTS, LISTENER: ROUTES}
"""What names what."""

MARK: Final = b"mark-"
"""A change puts a mark into what it changes, so that every node can tell when it has it."""
_MARKS: Final = re.compile(MARK + rb"(\d{6})")
_TAIL: Final = 512
"""Bytes at the end of a response that hold type and nonce."""
_TYPE: Final = b"type.googleapis.com/"


def mark(number: int) -> str:
    """The text that is looked for; all are equally long."""
    return f"{MARK.decode()}{number:06d}"


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field on the wire (protobuf encoding)."""
    size = len(value)
    out = bytearray((number << 3 | 2,))
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + value


def tail(data: bytes) -> tuple[str, str] | None:
    """(type, nonce) of a response of either variant if it ends with these two (fields 4 and 5), or None: then parse it."""
    at = data.rfind(_TYPE, max(0, len(data) - _TAIL))
    if at < 2 or data[at - 2] != 4 << 3 | 2:
        return None
    end = at + data[at - 1]
    if end + 2 > len(data) or data[at - 1] >= 0x80 or data[end] != 5 << 3 | 2 or data[end + 1] >= 0x80:
        return None
    last = end + 2 + data[end + 1]
    return (data[at:end].decode(), data[end + 2 : last].decode()) if last == len(data) else None


@dataclass(slots=True)
class Shared:
    """What the nodes of one process have in common, and what they saw."""

    children: dict[bytes, tuple[str, ...]] = field(default_factory=dict)
    """By cluster or listener as it is on the wire: the endpoints or routes that it names."""
    sections: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    """Names as they stand in a request."""
    responses: Counter[str] = field(default_factory=Counter)
    """By the last word of the type."""
    marks: dict[bytes, dict[int, float]] = field(default_factory=dict)
    """By mark that is looked for: when each node ACKed it first (monotonic seconds: one clock for all processes of a machine)."""
    seen: int = 0
    """Times in `marks`."""
    kept: dict[tuple[str, str], bytes] | None = None
    """By type and name, the resources of all responses, if they are to be kept."""

    def expect(self, marks: Sequence[str]) -> None:
        """From now on look for these."""
        self.marks = {mark.removeprefix(MARK.decode()).encode(): {} for mark in marks}
        self.seen = 0

    def note(self, number: int, data: bytes, now: float) -> None:
        """See which marks a node has with this response."""
        if self.marks and MARK in data:
            for found in _MARKS.findall(data):
                times = self.marks.get(found)
                if times is not None and number not in times:
                    times[number] = now
                    self.seen += 1

    def names_of(self, packed: Any) -> tuple[str, ...]:
        """What a cluster or listener names."""
        found = self.children.get(packed.value)
        if found is None:
            found = self.children[packed.value] = tuple(
                _clusters_names(packed) if packed.type_url == CLUSTER else _listeners_names(packed)
            )
        return found

    def section(self, names: tuple[str, ...]) -> bytes:
        """Names as field 3 of a request of either variant."""
        found = self.sections.get(names)
        if found is None:
            found = self.sections[names] = b"".join(_field(3, name.encode()) for name in names)
        return found


def _clusters_names(packed: Any) -> Iterable[str]:
    cluster = cluster_pb2.Cluster.FromString(packed.value)
    if cluster.type == cluster_pb2.Cluster.EDS:
        yield cluster.eds_cluster_config.service_name or cluster.name


def _listeners_names(packed: Any) -> Iterable[str]:
    for chain in listener_pb2.Listener.FromString(packed.value).filter_chains:
        manager = http_connection_manager_pb2.HttpConnectionManager()
        if chain.filters and chain.filters[-1].typed_config.Unpack(manager) and manager.HasField("rds"):
            yield manager.rds.route_config_name


class DataPlane(Protocol):
    """One node on one stream."""

    @property
    def is_synced(self) -> bool:
        """True once it has had an answer to all that it asked for."""

    def start(self) -> list[bytes]:
        """The first requests."""

    def on_response(self, data: bytes, now: float) -> list[bytes]:
        """The ACK of a response, and what else it leads to."""


def node(number: int, name: str) -> bytes:
    """core.v3.Node of a sidecar: like those of `remora bootstrap`, with an application beside it."""
    message = base_pb2.Node(id=f"sim-{number}", cluster=f"{name}.default", user_agent_name="remora")
    message.metadata.update(
        {
            "service": name,
            "namespace": "default",
            "version": "v1",
            "inbound_address": "127.0.0.1",
            "inbound_port": 20_000 + number % 20_000,
            "app_address": "127.0.0.1",
            "app_port": 40_000 + number % 20_000,
            "outbound_address": "127.0.0.1",
            "outbound_port": 15_001,
        }
    )
    data: bytes = message.SerializeToString(deterministic=True)
    return data


class StateOfTheWorld:
    """`StreamAggregatedResources`: every request of a type repeats all names."""

    METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"

    def __init__(self, number: int, node: bytes, shared: Shared) -> None:
        self._number = number
        self._node = node
        self._shared = shared
        self._names: dict[str, tuple[str, ...]] = {CLUSTER: (), LISTENER: ()}
        self._versions: dict[str, tuple[bytes, str]] = {}
        """(version, nonce) of the last response of a type."""

    @property
    def is_synced(self) -> bool:
        return len(self._versions) == len(self._names) == len(PARENTS) * 2

    def start(self) -> list[bytes]:
        return [_field(2, self._node) + self._request(CLUSTER), self._request(LISTENER)]

    def on_response(self, data: bytes, now: float) -> list[bytes]:
        read = tail(data)
        if read is None or read[0] in PARENTS or self._shared.kept is not None:
            return self._on_parsed(discovery_pb2.DiscoveryResponse.FromString(data), data, now)
        url, nonce = read
        # The version is the first field if there is one; it is shorter than 128 bytes or the response was parsed.
        version = data[2 : 2 + data[1]] if data[0] == 1 << 3 | 2 and data[1] < 0x80 else b""
        return self._answered(url, version, nonce, data, now)

    def _on_parsed(self, response: Any, data: bytes, now: float) -> list[bytes]:
        url = response.type_url
        out = self._answered(url, response.version_info.encode(), response.nonce, data, now)
        if self._shared.kept is not None:
            for packed in response.resources:
                self._shared.kept[url, _name(packed)] = packed.value
        child = PARENTS.get(url)
        if child is not None:
            names = tuple(sorted({name for packed in response.resources for name in self._shared.names_of(packed)}))
            if names != self._names.get(child):
                self._names[child] = names
                out.append(self._request(child))
        return out

    def _answered(self, url: str, version: bytes, nonce: str, data: bytes, now: float) -> list[bytes]:
        self._shared.responses[url.rpartition(".")[2]] += 1
        self._shared.note(self._number, data, now)
        self._versions[url] = (version, nonce)
        return [self._request(url)]

    def _request(self, url: str) -> bytes:
        version, nonce = self._versions.get(url, (b"", ""))
        return (
            (_field(1, version) if version else b"")
            + self._shared.section(self._names[url])
            + _field(4, url.encode())
            + (_field(5, nonce.encode()) if nonce else b"")
        )


class Delta:
    """`DeltaAggregatedResources`: names are told once, responses hold what changed."""

    METHOD: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

    def __init__(self, number: int, node: bytes, shared: Shared) -> None:
        self._number = number
        self._node = node
        self._shared = shared
        self._answered: set[str] = set()
        self._children: dict[str, dict[str, tuple[str, ...]]] = {url: {} for url in PARENTS}
        """By type and name of a cluster or listener: what it names."""

    @property
    def is_synced(self) -> bool:
        return len(self._answered) == len(PARENTS) * 2

    def start(self) -> list[bytes]:
        return [_field(1, self._node) + _field(2, CLUSTER.encode()), _field(2, LISTENER.encode())]

    def on_response(self, data: bytes, now: float) -> list[bytes]:
        read = tail(data)
        if read is None or read[0] in PARENTS or self._shared.kept is not None:
            return self._on_parsed(discovery_pb2.DeltaDiscoveryResponse.FromString(data), data, now)
        return [self._ack(*read, data, now)]

    def _on_parsed(self, response: Any, data: bytes, now: float) -> list[bytes]:
        url = response.type_url
        out = [self._ack(url, response.nonce, data, now)]
        if self._shared.kept is not None:
            for item in response.resources:
                self._shared.kept[url, item.name] = item.resource.value
        if url in PARENTS:
            held = self._children[url]
            before = {name for names in held.values() for name in names}
            for item in response.resources:
                held[item.name] = self._shared.names_of(item.resource)
            for name in response.removed_resources:
                held.pop(name, None)
            after = {name for names in held.values() for name in names}
            if before != after:
                gone = b"".join(_field(4, name.encode()) for name in sorted(before - after))
                new = self._shared.section(tuple(sorted(after - before)))
                out.append(_field(2, PARENTS[url].encode()) + new + gone)
        return out

    def _ack(self, url: str, nonce: str, data: bytes, now: float) -> bytes:
        self._shared.responses[url.rpartition(".")[2]] += 1
        self._shared.note(self._number, data, now)
        self._answered.add(url)
        return _field(2, url.encode()) + _field(6, nonce.encode())


def _name(packed: Any) -> str:
    """A resource's name."""
    message = MESSAGES[packed.type_url].FromString(packed.value)
    name: str = message.cluster_name if packed.type_url == ENDPOINTS else message.name
    return name


VARIANTS: Final[dict[str, type[StateOfTheWorld] | type[Delta]]] = {"sotw": StateOfTheWorld, "delta": Delta}
