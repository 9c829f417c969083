"""What policies about failing calls become: read by the sidecar itself, since its configuration says what each field does."""

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_pb2

from control_plane.translate.snapshot import CLUSTER, ROUTES
from sidecar.policy.breaker import BreakerConfig
from sidecar.proxy.config import Budget, ClusterConfig, Fault, HeaderMatch, Route, Thresholds
from sidecar.xds import convert
from tests.control_plane.translate.meshes import read

SERVICE = """node cart.shop
---
apiVersion: remora.dev/v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {}
"""
WIDE = 100_000


def policy(kind: str, spec: str, name: str = "it", namespace: str = "shop") -> str:
    head = f"---\napiVersion: remora.dev/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
    return f"{head}spec: {spec}\n"


def translated(*policies: str) -> tuple[ClusterConfig, Route]:
    """The cluster and the route of stock.shop, as the sidecar takes them."""
    snapshot = read(SERVICE + "".join(policies)).snapshot()
    cluster = cluster_pb2.Cluster.FromString(snapshot.types[CLUSTER]["outbound|stock.shop"])
    table = convert.route_table(route_pb2.RouteConfiguration.FromString(snapshot.types[ROUTES]["outbound"]))
    [host] = [host for host in table.virtual_hosts if host.name == "stock.shop"]
    return convert.cluster(cluster), host.routes[0]


def test_without_a_policy_only_what_never_reached_the_application_is_tried_again() -> None:
    cluster, route = translated()
    assert route.retry is not None
    assert route.retry.on == ("connect-failure", "refused-stream", "reset-before-request")
    assert (route.retry.num_retries, route.retry.avoid_previous_hosts) == (2, True)
    assert cluster.thresholds == Thresholds(WIDE, WIDE, WIDE)
    assert (cluster.outlier_detection, cluster.breaker, route.timeout_s, route.overrides) == (None, None, 0.0, ())


def test_limits() -> None:
    spec = "{limits: {maxConnections: 5, maxPendingRequests: 6, maxRequests: 7, retryBudgetPercent: 30}}"
    cluster, _ = translated(policy("CircuitBreakerPolicy", spec))
    assert cluster.max_connections == 5
    assert cluster.thresholds == Thresholds(6, 7, WIDE, Budget(30.0, 3), tracks_remaining=True)


def test_ejection() -> None:
    spec = "{ejection: {consecutiveErrors: 3, interval: 1s, baseTime: 2s, maxTime: 9s, maxPercent: 90, failurePercent: 60, minimumCalls: 8}}"
    detection = translated(policy("CircuitBreakerPolicy", spec))[0].outlier_detection
    assert detection is not None
    assert (detection.consecutive_5xx, detection.enforcing_consecutive_5xx) == (3, 100)
    assert (detection.interval_s, detection.base_ejection_s, detection.max_ejection_s) == (1.0, 2.0, 9.0)
    assert detection.max_ejection_percent == 90
    assert (detection.failure_percentage_threshold, detection.enforcing_failure_percentage) == (60, 100)
    assert (detection.failure_percentage_request_volume, detection.failure_percentage_minimum_hosts) == (8, 2)


def test_ejection_that_says_nothing_takes_up_to_half() -> None:
    detection = translated(policy("CircuitBreakerPolicy", "{ejection: {}}"))[0].outlier_detection
    assert detection is not None
    assert (detection.consecutive_5xx, detection.max_ejection_percent, detection.base_ejection_s) == (5, 50, 30.0)
    assert detection.enforcing_failure_percentage == detection.enforcing_success_rate == 0


def test_a_breaker_reaches_the_sidecar() -> None:
    spec = "{breaker: {failurePercent: 40, minimumCalls: 9, window: 3s, slowCall: 0.5s, slowPercent: 70, open: 2s, maxOpen: 8s, probes: 2}}"
    cluster, _ = translated(policy("CircuitBreakerPolicy", spec))
    assert cluster.breaker == BreakerConfig(3.0, 9, 40.0, 0.5, 70.0, 2.0, 8.0, 2)
    assert translated(policy("CircuitBreakerPolicy", "{breaker: {}}"))[0].breaker == BreakerConfig()


def test_shadow_detects_and_does_nothing() -> None:
    spec = "{mode: Shadow, limits: {maxRequests: 1}, ejection: {failurePercent: 50}, breaker: {}}"
    cluster, _ = translated(policy("CircuitBreakerPolicy", spec))
    assert cluster.breaker is not None and not cluster.breaker.is_enforced
    assert cluster.thresholds.max_requests == WIDE
    detection = cluster.outlier_detection
    assert detection is not None
    assert detection.enforcing_consecutive_5xx == detection.enforcing_failure_percentage == 0


def test_what_is_off_is_as_if_it_were_not_there() -> None:
    policies = [
        policy("CircuitBreakerPolicy", "{mode: Off, limits: {maxRequests: 1}}"),
        policy("RetryPolicy", "{mode: Off, retries: 5}"),
        policy("TimeoutPolicy", "{mode: Off, request: 1s}"),
        policy("FaultPolicy", "{mode: Off, abort: {status: ABORTED}}"),
    ]
    assert translated(*policies) == translated()


def test_retries() -> None:
    spec = (
        "{on: [Reset, Unavailable], retries: 4, idempotent: true, perTryTimeout: 1s, backoff: 10ms, maxBackoff: 30ms}"
    )
    retry = translated(policy("RetryPolicy", spec))[1].retry
    assert retry is not None
    assert retry.on[3:] == ("reset", "unavailable")
    assert (retry.num_retries, retry.per_try_timeout_s) == (4, 1.0)
    assert (retry.backoff_base_s, retry.backoff_max_s) == (0.01, 0.03)
    assert retry.request_headers == ()


def test_only_calls_with_a_key_are_tried_again_where_one_is_asked_for() -> None:
    retry = translated(policy("RetryPolicy", "{on: [Unavailable], idempotencyKey: x-key, retries: 0}"))[1].retry
    assert retry is not None
    assert retry.request_headers == (HeaderMatch(b"x-key", present=True),)
    assert retry.num_retries == 0


def test_a_hedge_reaches_the_sidecar() -> None:
    retry = translated(policy("RetryPolicy", "{idempotent: true, hedge: {delay: 50ms, tries: 2}}"))[1].retry
    assert retry is not None
    assert (retry.hedges, retry.hedge_delay_s, retry.num_retries) == (2, 0.05, 2)


def test_times() -> None:
    _, route = translated(policy("TimeoutPolicy", "{request: 2s, idle: 3s}"))
    assert (route.timeout_s, route.idle_timeout_s) == (2.0, 3.0)


def test_faults() -> None:
    spec = (
        "{delay: {duration: 200ms, percent: 0.5}, abort: {status: UNAVAILABLE}, headers: {x-user: ann}, maxActive: 3}"
    )
    _, route = translated(policy("FaultPolicy", spec))
    expected = Fault(
        delay_s=0.2,
        delay_share=0.005,
        delay_denominator=1_000_000,
        abort_grpc=14,
        abort_share=1.0,
        abort_denominator=1_000_000,
        headers=(HeaderMatch(b"x-user", exact=b"ann"),),
        max_active=3,
    )
    assert route.overrides == (("fault", expected),)


def test_a_share_of_nothing_is_nothing() -> None:
    _, route = translated(policy("FaultPolicy", "{abort: {status: ABORTED, percent: 0}}"))
    [(_, fault)] = route.overrides
    assert isinstance(fault, Fault) and fault.abort_share == 0.0


@pytest.mark.parametrize(
    ("policies", "seconds"),
    [
        ([("mesh", "remora-system", "{request: 1s}")], 1.0),
        ([("mesh", "remora-system", "{request: 1s}"), ("here", "shop", "{request: 2s}")], 2.0),
        (
            [
                ("mesh", "remora-system", "{request: 1s}"),
                ("here", "shop", "{request: 2s}"),
                ("own", "shop", "{targetRefs: [{name: stock}], request: 3s}"),
            ],
            3.0,
        ),
        ([("elsewhere", "office", "{request: 1s}")], 0.0),
    ],
)
def test_the_policy_closest_to_a_service_counts(policies: list[tuple[str, str, str]], seconds: float) -> None:
    _, route = translated(*(policy("TimeoutPolicy", spec, name, namespace) for name, namespace, spec in policies))
    assert route.timeout_s == seconds
