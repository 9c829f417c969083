"""Outlier detection at work: what a cluster's endpoints answer goes to their records, and who is ejected is left out of balancing."""

from time import monotonic
from typing import TYPE_CHECKING, Final

from sidecar.policy.outlier import HTTP_OF_GRPC, Detector, OutlierDetection, Record
from sidecar.proxy.timers import Timed

if TYPE_CHECKING:
    from sidecar.proxy.cluster import Cluster, Endpoint

UNREACHABLE: Final = 503
"""What a connection that cannot be made, and a reset, count as (Envoy: Outlier::Result::LocalOriginConnectFailed)."""
TOO_LATE: Final = 504
"""What a time-out counts as."""


class Outliers(Timed):
    """The outlier detection of one cluster."""

    def __init__(self, cluster: "Cluster", config: OutlierDetection) -> None:
        self.detector = Detector(config, cluster.worker.chance)
        self._cluster = cluster
        self.deadline = 0.0
        self._arm()

    def watch(self, endpoint: "Endpoint") -> Record:
        """The record of an endpoint that came."""
        return self.detector.add()

    def forget(self, endpoint: "Endpoint") -> None:
        """An endpoint went."""
        if endpoint.record is not None:
            self.detector.remove(endpoint.record)
            endpoint.record = None

    def answered(self, record: Record, http_status: int, grpc_status: int) -> None:
        """An endpoint answered; `grpc_status` is -1 where there is none. What gRPC says counts, not the 200 under it."""
        code = http_status
        if grpc_status >= 0:
            code = HTTP_OF_GRPC[grpc_status] if grpc_status < len(HTTP_OF_GRPC) else 500
        if record.on_code(code, monotonic()):
            self._cluster.rebalance_by_health()

    def failed(self, record: Record, code: int) -> None:
        """An endpoint could not be reached, ended a call, or did not answer in time."""
        if record.on_failure(code, monotonic()):
            self._cluster.rebalance_by_health()

    def passed_check(self, record: Record) -> bool:
        """An active health check was passed: with that an ejection may end; True if it did."""
        return self.detector.config.uneject_on_check and self.detector.release(record)

    def on_deadline(self) -> None:
        if self.detector.sweep(monotonic()):
            self._cluster.rebalance_by_health()
        self._arm()

    def _arm(self) -> None:
        self.deadline = monotonic() + self.detector.config.interval_s
        self._cluster.worker.timers.add(self)

    def stop(self) -> None:
        """The cluster is gone."""
        self.deadline = 0.0
