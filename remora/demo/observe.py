"""What the mesh says of itself: counters of all sidecars, as rates and percentiles per edge.

An edge is caller, callee and the callee's version. Counters come from each node's admin endpoint, whose address the control plane knows.
"""

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

import grpc
from prometheus_client.parser import text_string_to_metric_families

from proto.mesh.v1 import api_pb2, api_pb2_grpc, service_pb2
from remora.addresses import host_port
from remora.agent import admin

INTERVAL_S: Final = 1.0
WINDOW: Final = 4
"""Rates and percentiles are over so many intervals."""

Edge = tuple[str, str, str]
"""Caller, callee, version of the callee."""


@dataclass(slots=True)
class Sample:
    """All counters at one moment."""

    at: float
    calls: Counter[Edge] = field(default_factory=Counter)
    good: Counter[Edge] = field(default_factory=Counter)
    buckets: dict[Edge, Counter[float]] = field(default_factory=lambda: defaultdict(Counter))
    """Cumulative, by upper bound in seconds."""
    limited: Counter[str] = field(default_factory=Counter)
    """Calls that a rate limit refused, by the service that it protects."""
    instances: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Healthy ones, by callee and version."""
    retried: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By caller and callee."""
    blind: set[Edge] = field(default_factory=set)
    """Edges whose sidecar does not tell how calls ended."""
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class EdgeView:
    """An edge as it is shown."""

    edge: Edge
    rate: float
    """Calls a second."""
    success: float | None
    """Share of calls that ended with OK, 0 to 1; None if nobody knows."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    instances: int
    """Healthy instances of this version, that the calls are balanced over."""
    refused: float = 0.0
    """Calls to the callee that a rate limit refused, a second; on the first edge to it."""
    moved: float = 0.0
    """Calls of the caller to the callee that were sent to another endpoint, a second; on the first edge between them."""


@dataclass(frozen=True, slots=True)
class View:
    """The mesh over the last few seconds."""

    edges: tuple[EdgeView, ...] = ()
    nodes: int = 0
    span_s: float = 0.0
    """How long the last few seconds are."""


def read(text: str, service: str, namespace: str, sample: Sample) -> None:
    """Add the exposition of the sidecar of a service's instance to a sample."""
    for family in text_string_to_metric_families(text):
        for metric in family.samples:
            labels = metric.labels
            if labels.get("direction", "outbound") != "outbound":
                continue
            edge = (service, labels.get("service", ""), labels.get("version", ""))
            match metric.name:
                case "remora_requests_total":
                    sample.calls[edge] += int(metric.value)
                    if labels["grpc_status"] == "OK":
                        sample.good[edge] += int(metric.value)
                case "remora_request_duration_seconds_bucket":
                    sample.buckets[edge][float(labels["le"])] += int(metric.value)
                case "remora_rate_limited_total" if labels["mode"] == "Enforce":
                    sample.limited[f"{service}.{namespace}"] += int(metric.value)
                case "remora_retries_total":
                    sample.retried[edge[:2]] += int(metric.value)


def _percentile(buckets: Mapping[float, int], share: float) -> float:
    """Milliseconds below which this share of the calls stayed, linear inside a bucket."""
    bounds = sorted(buckets)
    counts = [buckets[bound] for bound in bounds]
    total = counts[-1] if counts else 0
    if not total:
        return 0.0
    place = bisect_left(counts, share * total)
    upper = bounds[place]
    lower = bounds[place - 1] if place else 0.0
    below = counts[place - 1] if place else 0
    if upper == float("inf"):
        return lower * 1000
    return (lower + (upper - lower) * (share * total - below) / max(1, counts[place] - below)) * 1000


def compare(old: Sample, new: Sample) -> View:
    """What happened between two samples."""
    span = max(new.at - old.at, 1e-3)
    refused, moved = dict(new.limited - old.limited), dict(new.retried - old.retried)

    def views() -> Iterator[EdgeView]:
        for edge in sorted(new.calls):
            calls = new.calls[edge] - old.calls[edge]
            if calls <= 0:
                continue
            good = new.good[edge] - old.good[edge]
            before = old.buckets.get(edge, Counter[float]())
            buckets = {bound: count - before[bound] for bound, count in new.buckets[edge].items()}
            p50, p95, p99 = (_percentile(buckets, share) for share in (0.5, 0.95, 0.99))
            yield EdgeView(
                edge,
                calls / span,
                None if edge in new.blind else good / calls,
                p50,
                p95,
                p99,
                instances=new.instances[edge[1:]],
                refused=refused.pop(edge[1], 0) / span,
                moved=moved.pop(edge[:2], 0) / span,
            )

    return View(tuple(views()), new.nodes, new.at - old.at)


class Observer:
    """Asks all nodes, whenever it is told to look."""

    def __init__(self, server: str) -> None:
        self._channel = grpc.aio.insecure_channel(server, options=[("grpc.enable_http_proxy", 0)])
        self._stub = api_pb2_grpc.MeshStub(self._channel)
        self._registry = api_pb2_grpc.RegistryStub(self._channel)
        self._samples: deque[Sample] = deque(maxlen=WINDOW + 1)
        self.view = View()

    @property
    def last(self) -> Sample:
        """The newest counters."""
        return self._samples[-1] if self._samples else Sample(0.0)

    async def nodes(self) -> list[api_pb2.Node]:
        """The connected nodes; empty if the control plane does not answer."""
        try:
            answer = await self._stub.Nodes(api_pb2.NodesRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return []
        return list(answer.nodes)

    async def _versions(self, callee: str) -> Counter[str]:
        """How many healthy instances of each version stand behind a name; none if the control plane does not answer."""
        name, _, namespace = callee.partition(".")
        asked = api_pb2.ListInstancesRequest(service=name, namespace=namespace)
        try:
            answer = await self._registry.ListInstances(asked, timeout=2)
        except grpc.aio.AioRpcError:
            return Counter()
        return Counter(each.version for each in answer.instances if each.health == service_pb2.HEALTHY)

    async def look(self) -> None:
        """Take one sample."""
        from remora.demo import envoy_stats  # which needs our types

        nodes = await self.nodes()
        sample = Sample(monotonic(), nodes=len(nodes))
        texts = await asyncio.gather(*(_scrape(node.admin_address) for node in nodes))
        for node, text in zip(nodes, texts, strict=True):
            (envoy_stats.read if node.engine == "envoy" else read)(text, node.service, node.namespace, sample)
        callees = sorted({callee for _, callee, _ in sample.calls})
        for callee, versions in zip(callees, await asyncio.gather(*map(self._versions, callees)), strict=True):
            sample.instances.update({(callee, version): count for version, count in versions.items()})
        self._samples.append(sample)
        self.view = compare(self._samples[0], sample)

    async def close(self) -> None:
        await self._channel.close()


async def _scrape(address: str) -> str:
    """A node's metrics; empty if it does not answer, as a node that was just killed."""
    if not address:
        return ""
    status, text = await admin.ask(host_port(address, "admin address"), "/stats/prometheus")
    return text if status == 200 else ""
