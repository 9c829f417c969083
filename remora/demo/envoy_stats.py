"""What Envoy says of the same edges. It knows no versions, and without a filter of its own for it, nothing of grpc-status."""

import re
from collections.abc import Mapping
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from remora.demo.observe import Edge, Sample

_CLUSTER: Final = re.compile(r"envoy_cluster_([a-z0-9_]+?)_upstream_rq_(total|time_bucket|retry)(?:_total)?")
"""A cluster `outbound|NAME.NAMESPACE` is split at its dot: the namespace gets into the metric's name, with `_` for `-`. The parser
lets every counter end with `_total`."""
_OUTBOUND: Final = "outbound|"


def _is_a_part(namespace: str, labels: Mapping[str, str]) -> bool:
    """True for what Envoy counts a second time, by response code and by where calls come from."""
    return "envoy_response_code" in labels or namespace.endswith(("_external", "_internal"))


def read(text: str, service: str, namespace: str, sample: Sample) -> None:
    """Add the exposition of the Envoy of a service's instance to a sample."""
    for family in text_string_to_metric_families(text):
        for metric in family.samples:
            if metric.name == "envoy_http_local_rate_limit_enforced_total":
                sample.limited[f"{service}.{namespace}"] += int(metric.value)
                continue
            found = _CLUSTER.fullmatch(metric.name)
            cluster = metric.labels.get("envoy_cluster_name", "")
            if found is None or not cluster.startswith(_OUTBOUND) or _is_a_part(found[1], metric.labels):
                continue
            callee = f"{cluster.removeprefix(_OUTBOUND)}.{found[1].replace('_', '-')}"
            edge: Edge = (service, callee, "")
            match found[2]:
                case "total":
                    sample.calls[edge] += int(metric.value)
                    sample.blind.add(edge)
                case "time_bucket":
                    sample.buckets[edge][float(metric.labels["le"]) / 1000] += int(metric.value)
                case "retry":
                    sample.retried[service, callee] += int(metric.value)
