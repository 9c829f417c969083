"""`remora route split` in a mesh of real processes: shares, a canary that is promoted, one that is taken back."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.end_to_end.test_identity import until
from tests.mesh import Load, Mesh, load
from tests.ports import free_ports

QUICK = ("--every", "0.5s", "--minimum-calls", "20")


@contextmanager
def called(mesh: Mesh, service: str) -> Iterator[Load]:
    """Calls in the background from a sidecar of ours."""
    client = mesh.caller("remora")
    stub = client.stub(f"{service}:80")
    until(client, stub, "one")
    with load(lambda: client.says(stub), threads=4) as calls:
        yield calls


def weights(mesh: Mesh, service: str) -> dict[str, int]:
    result = mesh.remora("get", "grpcroute", f"{service}-split", "-o", "json")
    assert result.code == 0, result.err
    refs = json.loads(result.out)["spec"]["rules"][0]["backendRefs"]
    total = sum(ref.get("weight", 1) for ref in refs)
    return {ref["name"]: round(100 * ref.get("weight", 1) / total) for ref in refs}


def test_a_good_canary_is_promoted_step_by_step_and_no_call_fails(guests: Mesh) -> None:
    guests.echo("one", "good", options=("--version", "v1"))
    with called(guests, "good") as calls:
        guests.echo("two", "good", options=("--version", "v2"))
        assert guests.remora("route", "split", "good", "v1=100", "v2=0").code == 0
        calls.instances.clear()
        calls.more(100)
        assert set(calls.instances) == {"one"}
        result = guests.remora("route", "split", "good", "v1=80", "v2=20", "--promote", "--step", "40", *QUICK)
        assert result.code == 0, result.err
        calls.instances.clear()
        calls.more(100)
        assert calls.instances["two"] >= 96, calls.instances  # a few were on their way
    assert not calls.failed
    lines = result.out.splitlines()
    assert lines[0] == "good.default: v1 80 %, v2 20 %"
    assert [line.rpartition(": ")[2] for line in lines[1:]] == [
        "v1 40 %, v2 60 %",
        "v1 0 %, v2 100 %",
        "v1 0 %, v2 100 %, promoted",
    ]
    assert weights(guests, "good") == {"good-v1": 0, "good-v2": 100}


@pytest.mark.slow
def test_a_bad_canary_is_taken_back(guests: Mesh) -> None:
    guests.echo("one", "bad", options=("--version", "v1"))
    (nobody,) = free_ports(1)
    with called(guests, "bad") as calls:
        guests.remora("route", "split", "bad", "v1=1", "v2=0")
        guests.spawn("register", "bad", f"127.0.0.1:{nobody}", "--version", "v2", name="nobody").until("registered")
        result = guests.remora("route", "split", "bad", "v1=80", "v2=20", "--promote", "--abort-below", "95%", *QUICK)
        assert result.code == 1, result.err
        calls.outcomes.clear()
        calls.more(100)
        assert sum(calls.failed.values()) <= 4, calls.outcomes  # those that were on their way
    assert "0.00 % of " in result.out and "less than 95 %: taken back, v1 100 %, v2 0 %" in result.out
    assert weights(guests, "bad") == {"bad-v1": 100, "bad-v2": 0}


@pytest.mark.slow
def test_without_calls_nothing_is_promoted(guests: Mesh) -> None:
    guests.echo("one", "quiet", options=("--version", "v1"))
    result = guests.remora("route", "split", "quiet", "v1=9", "v2=1", "--promote", "--timeout", "1s", *QUICK)
    assert result.code == 4
    assert "no instance of quiet.default has the version v2: its calls will fail" in result.err
    assert "the time was over before v2 was promoted: taken back" in result.err
    assert weights(guests, "quiet") == {"quiet-v1": 100, "quiet-v2": 0}


OTHERS = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: others}
spec: {parentRefs: [{name: steered}], rules: [{backendRefs: [{name: steered}]}]}
---
apiVersion: remora.dev/v1
kind: Service
metadata: {name: taken-v1}
spec: {}
"""


def test_what_others_wrote_is_left_alone(guests: Mesh) -> None:
    guests.apply(OTHERS)
    for service, said in (
        ("steered", 'GRPCRoute "others.default" steers steered already; change or delete it'),
        ("taken", 'Service "taken-v1" is there already, and is something else than version v1 of taken'),
    ):
        result = guests.remora("route", "split", service, "v1=1")
        assert (result.code, result.out) == (1, "")
        assert said in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("v1",), '"v1" is not VERSION=WEIGHT, such as v1=90'),
        (("v1=0",), "the weights add up to 0"),
        (("v1=1", "v1=2"), "version v1 stands twice"),
        (("v1=1", "--promote"), "--promote: a version besides the last must have calls"),
        (("v1=9", "v2=1", "--promote", "--abort-below", "most"), '--abort-below: "most" is no percentage'),
    ],
)
def test_a_split_that_cannot_be_is_refused_in_one_line(guests: Mesh, words: tuple[str, ...], said: str) -> None:
    result = guests.remora("route", "split", "echo", *words)
    assert (result.code, result.out) == (2, "")
    assert said in result.err and result.err.count("\n") == 1
