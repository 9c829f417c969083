"""What the rules cannot say of policies about failing calls: which fields need each other, and which modes mean something."""

from collections.abc import Iterator
from typing import Any, Final

from control_plane.resources.errors import Fault
from proto.mesh.v1 import api_pb2, policy_pb2
from proto.mesh.v1.resilience_pb2 import CircuitBreakerPolicySpec, FaultPolicySpec, RetryPolicySpec, TimeoutPolicySpec

CODE: Final = "RMR0021"
_ALWAYS: Final = frozenset((RetryPolicySpec.ConnectFailure, RetryPolicySpec.RefusedStream))


def faults(resource: api_pb2.Resource) -> Iterator[Fault]:
    """Every fault of such a policy; of another resource none."""
    if resource.HasField("circuit_breaker_policy"):
        yield from _breaking(resource.circuit_breaker_policy)
    if resource.HasField("retry_policy"):
        yield from _retry(resource.retry_policy)
        yield from _mode(resource.retry_policy, "a retry cannot be counted without being made")
    if resource.HasField("timeout_policy"):
        yield from _timeout(resource.timeout_policy)
        yield from _mode(resource.timeout_policy, "remora_request_duration_seconds says what a time-out would end")
    if resource.HasField("fault_policy"):
        yield from _fault(resource.fault_policy)
        yield from _mode(resource.fault_policy, "a fault that is not injected has no effect to look at")


def _mode(spec: Any, why: str) -> Iterator[Fault]:
    if spec.mode == policy_pb2.Shadow:
        yield Fault("spec.mode", f"Shadow means nothing here: {why}; say Enforce or Off", CODE)


def _longer(spec: Any, path: str, short: str, long: str) -> Iterator[Fault]:
    """The first duration must not be above the second."""
    if spec.HasField(short) and spec.HasField(long):
        first, last = getattr(spec, short).ToNanoseconds(), getattr(spec, long).ToNanoseconds()
        if last < first:
            names = [spec.DESCRIPTOR.fields_by_name[name].json_name for name in (short, long)]
            yield Fault(
                f"{path}.{names[1]}", f"{last / 1e9:g} s is less than {names[0]}, {first / 1e9:g} s; raise it", CODE
            )


def _breaking(spec: CircuitBreakerPolicySpec) -> Iterator[Fault]:
    if not any(spec.HasField(part) for part in ("limits", "ejection", "breaker")):
        yield Fault("spec", "does nothing; say limits, ejection or breaker", CODE)
    yield from _longer(spec.ejection, "spec.ejection", "base_time", "max_time")
    yield from _longer(spec.breaker, "spec.breaker", "open", "max_open")
    if spec.ejection.minimum_calls and not spec.ejection.failure_percent:
        yield Fault("spec.ejection.minimumCalls", "means nothing without failurePercent; say that too", CODE)
    if spec.breaker.slow_percent and not spec.breaker.HasField("slow_call"):
        yield Fault("spec.breaker.slowPercent", "means nothing without slowCall, which says what is slow", CODE)


def _retry(spec: RetryPolicySpec) -> Iterator[Fault]:
    risky = [RetryPolicySpec.Condition.Name(each) for each in spec.on if each not in _ALWAYS and each in _known()]
    if risky and not (spec.idempotent or spec.idempotency_key):
        text = (
            f"{risky[0]} may repeat a call that was processed already; say idempotent: true if that does no harm, "
            "or idempotencyKey: HEADER to retry only calls that carry one"
        )
        yield Fault("spec.on", text, CODE)
    if spec.HasField("per_try_timeout") and RetryPolicySpec.Reset not in spec.on:
        yield Fault("spec.perTryTimeout", "only leads to another try with `on: [Reset]`; add that", CODE)
    if spec.HasField("max_backoff") and not spec.HasField("backoff"):
        yield Fault("spec.maxBackoff", "means nothing without backoff; say that too", CODE)
    if spec.HasField("hedge") and not spec.idempotent:
        text = "makes every slow call happen twice; say idempotent: true if that does no harm"
        yield Fault("spec.hedge", text, CODE)
    if spec.HasField("hedge") and not spec.hedge.HasField("delay"):
        yield Fault("spec.hedge.delay", "is missing; say after how long, such as 50ms", CODE)
    yield from _longer(spec, "spec", "backoff", "max_backoff")


def _known() -> frozenset[int]:
    return frozenset(RetryPolicySpec.Condition.values())


def _timeout(spec: TimeoutPolicySpec) -> Iterator[Fault]:
    if not spec.HasField("request") and not spec.HasField("idle"):
        yield Fault("spec", "does nothing; say request or idle", CODE)


def _fault(spec: FaultPolicySpec) -> Iterator[Fault]:
    if not spec.HasField("delay") and not spec.HasField("abort"):
        yield Fault("spec", "does nothing; say delay or abort", CODE)
    if spec.HasField("delay") and not spec.delay.HasField("duration"):
        yield Fault("spec.delay.duration", "is missing; say how long, such as 200ms", CODE)
