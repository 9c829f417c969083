"""Policies about failing calls, from `remora apply` to what callers see, on both engines."""

from typing import Any, Final

import grpc
import pytest

from tests.mesh import Caller, Mesh
from tests.waiting import eventually

FAULT: Final = """
apiVersion: remora.dev/v1
kind: FaultPolicy
metadata: {{name: {service}}}
spec:
  targetRefs: [{{name: {service}}}]
  abort: {{status: UNAVAILABLE}}
  headers: {{x-fault: "yes"}}
"""
BREAKER: Final = """
apiVersion: remora.dev/v1
kind: CircuitBreakerPolicy
metadata: {{name: {service}}}
spec:
  targetRefs: [{{name: {service}}}]
  breaker: {{minimumCalls: 3, open: 10m, maxOpen: 10m}}
"""
EJECTION: Final = """
apiVersion: remora.dev/v1
kind: CircuitBreakerPolicy
metadata: {{name: {service}}}
spec:
  targetRefs: [{{name: {service}}}]
  ejection: {{consecutiveErrors: 1, baseTime: 10m, maxTime: 10m}}
  limits: {{maxRequests: 100}}
"""


def refusal(caller: Caller, stub: Any, **options: Any) -> str:
    """Status and message of a call that fails; empty if it does not."""
    try:
        caller.says(stub, **options)
    except grpc.RpcError as error:
        failed: Any = error
        return f"{failed.code().name}: {failed.details()}"
    return ""


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_fault_hits_the_calls_that_it_is_for_and_ends_with_its_policy(guests: Mesh, engine: str) -> None:
    service = f"faulty-{engine}"
    guests.echo(f"{service}-1", service)
    caller = guests.caller(engine)
    stub = caller.stub(f"{service}:80")
    eventually(lambda: refusal(caller, stub) == "")
    guests.apply(FAULT.format(service=service), "--wait")
    assert caller.says(stub) == f"{service}-1"
    marked = (("x-fault", "yes"),)
    text = refusal(caller, stub, metadata=marked)
    assert text.startswith("UNAVAILABLE: "), text
    if engine == "remora":
        assert "fault injected on purpose: aborted with UNAVAILABLE (flag FI)" in text
    assert guests.remora("delete", "faultpolicy", service, "--wait").code == 0
    assert caller.says(stub, metadata=marked) == f"{service}-1"


def test_a_service_whose_instance_is_dead_is_left_alone_by_its_breaker(guests: Mesh) -> None:
    """Every call fails, so after three of them the breaker opens, and says so."""
    service = "broken"
    said = guests.apply(BREAKER.format(service=service), "--wait").err
    assert "acknowledged by" in said
    process = guests.spawn("register", service, "127.0.0.1:1", name="register")
    eventually(lambda: guests.instances(service))
    caller = guests.caller()
    stub = caller.stub(f"{service}:80")
    texts: list[str] = []

    def is_open() -> bool:
        texts.append(refusal(caller, stub))
        return "circuit breaker open" in texts[-1]

    eventually(is_open)
    assert texts[-1].startswith(
        f'UNAVAILABLE: circuit breaker open: "outbound|{service}.default": too many calls failed'
    )
    assert sum("upstream connect error" in text for text in texts) == 3
    assert process.stop() == 0


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_dead_instance_beside_a_good_one_costs_no_call(guests: Mesh, engine: str) -> None:
    service = f"half-{engine}"
    guests.apply(EJECTION.format(service=service), "--wait")
    guests.echo(f"{service}-1", service)
    process = guests.spawn("register", service, "127.0.0.1:1", name=f"register-{engine}")
    eventually(lambda: len(guests.instances(service)) == 2)
    caller = guests.caller(engine)
    stub = caller.stub(f"{service}:80")
    eventually(lambda: refusal(caller, stub) == "")
    assert [caller.says(stub) for _ in range(20)] == [f"{service}-1"] * 20
    assert process.stop() == 0


def test_a_retry_that_may_do_harm_is_refused_with_the_way_out(guests: Mesh) -> None:
    text = "apiVersion: remora.dev/v1\nkind: RetryPolicy\nmetadata: {name: again}\nspec: {on: [Unavailable]}\n"
    said = guests.remora("apply", "-f", "-", text=text)
    assert said.code == 2
    assert "Unavailable may repeat a call that was processed already; say idempotent: true" in said.err
