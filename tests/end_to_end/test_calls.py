"""What a plain gRPC client and a plain gRPC server see when two sidecars stand between them: nothing but each other.

Both engines, on either side: the same control plane drives them, and the calls may not know which is which.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.end_to_end.programs.schema import messages
from tests.mesh import CLIENT, Caller, Mesh
from tests.waiting import eventually

UNARY: Final = 1000
STREAMS: Final = 100
MESSAGES: Final = 5
"""On each stream."""
ENGINES: Final = [("remora", "remora"), ("remora", "envoy"), ("envoy", "remora")]
"""Of caller and callee."""

Note = messages.Note


@pytest.fixture(scope="module")
def mesh(shared: Mesh) -> Mesh:
    """An instance behind each engine: services `echo-remora` and `echo-envoy`."""
    for engine in ("remora", "envoy"):
        shared.echo(f"{engine}-1", f"echo-{engine}", engine=engine, is_awaited=False)
        shared.caller(engine)
    for engine in ("remora", "envoy"):
        shared.until_healthy(f"{engine}-1", service=f"echo-{engine}")
    return shared


@pytest.fixture(params=ENGINES, ids=lambda engines: "-to-".join(engines))
def pair(request: pytest.FixtureRequest, mesh: Mesh) -> tuple[Caller, str]:
    """A caller, and the name of the service that it calls."""
    caller, callee = request.param
    return mesh.caller(caller), f"echo-{callee}:50051"


def test_a_thousand_unary_calls_and_a_hundred_streams_of_each_kind_all_succeed(pair: tuple[Caller, str]) -> None:
    caller, target = pair
    stub = caller.stub(target)

    def unary(number: int) -> bool:
        return bool(stub.Unary(Note(text=f"call {number}"), timeout=30).text == f"call {number}")

    def server_stream(number: int) -> bool:
        answers = stub.ServerStream(Note(text=f"s{number}", count=MESSAGES), timeout=30)
        return [(each.text, each.count) for each in answers] == [(f"s{number}", place) for place in range(MESSAGES)]

    def client_stream(number: int) -> bool:
        answer = stub.ClientStream((Note(text=f"{number},") for _ in range(MESSAGES)), timeout=30)
        return bool(answer.count == MESSAGES and answer.text == f"{number}," * MESSAGES)

    def bidi_stream(number: int) -> bool:
        """To and fro: the next message is sent when the last one has been answered."""
        outgoing: SimpleQueue[Any] = SimpleQueue()
        answers = stub.BidiStream(iter(outgoing.get, None), timeout=30)
        for place in range(MESSAGES):
            outgoing.put(Note(text=f"{number}/{place}"))
            if next(answers).text != f"{number}/{place}":
                return False
        outgoing.put(None)
        return next(answers, None) is None

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(unary, range(UNARY)))
        for kind in (server_stream, client_stream, bidi_stream):
            assert all(threads.map(kind, range(STREAMS))), kind.__name__


def test_statuses_arrive_with_their_message_and_details(pair: tuple[Caller, str]) -> None:
    caller, target = pair
    stub = caller.stub(target)
    for code in grpc.StatusCode:
        if code is grpc.StatusCode.OK:
            continue
        message = f"no luck with {code.name}: 100 % größer ☃\nnew line"
        with pytest.raises(grpc.RpcError) as caught:
            stub.Fail(messages.Failure(code=code.value[0], message=message, reason="BAD_DAY"), timeout=5)
        error: Any = caught.value
        assert (error.code(), error.details()) == (code, message)
        status = rpc_status.from_call(error)
        detail = error_details_pb2.ErrorInfo()
        assert status is not None and status.details[0].Unpack(detail) and detail.reason == "BAD_DAY"


def test_metadata_goes_both_ways_untouched(pair: tuple[Caller, str]) -> None:
    caller, target = pair
    raw = bytes(range(256))
    first = [("first-text", "some text, with; signs"), ("first-raw-bin", raw), ("first-empty", "")]
    last = [("last-raw-bin", raw), ("last-text", "the end")]
    _, call = caller.stub(target).Unary.with_call(Note(), timeout=5, metadata=[*first, *last])
    assert [(key, value) for key, value in call.initial_metadata() if key.startswith("first-")] == first
    assert [(key, value) for key, value in call.trailing_metadata() if key.startswith("last-")] == last


def test_large_messages_pass_both_ways(pair: tuple[Caller, str]) -> None:
    caller, target = pair
    stub = caller.stub(target)
    payload = bytes(3_000_000)
    assert stub.Unary(Note(payload=payload), timeout=30).payload == payload
    answers = list(stub.ServerStream(Note(payload=bytes(200_000), count=20), timeout=30))
    assert sum(len(each.payload) for each in answers) == 20 * 200_000


def test_a_deadline_ends_the_call_on_both_sides(pair: tuple[Caller, str], mesh: Mesh) -> None:
    caller, target = pair
    start = monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        caller.stub(target).Slow(messages.Wait(milliseconds=20_000), timeout=0.4)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert monotonic() - start < 5
    _until_server_noticed(mesh, target)


def test_a_cancelled_call_is_cancelled_at_the_server(pair: tuple[Caller, str], mesh: Mesh) -> None:
    caller, target = pair
    stub = caller.stub(target)
    stub.Unary(Note(), timeout=5)  # the connection stands
    before = _noticed(mesh, target)
    call = stub.Slow.future(messages.Wait(milliseconds=20_000), timeout=30)
    stub.Unary(Note(), timeout=5)  # what was sent before has arrived
    assert call.cancel()
    eventually(lambda: _noticed(mesh, target) > before, message="the server went on")


def _noticed(mesh: Mesh, target: str) -> int:
    name = target.partition(":")[0]
    return sum(
        process.out.count("the caller is gone") for process in mesh.processes if process.name.endswith(f"-{name}")
    )


def _until_server_noticed(mesh: Mesh, target: str) -> None:
    eventually(lambda: _noticed(mesh, target) > 0, message="the server went on")


def test_a_program_that_knows_nothing_of_a_mesh_calls_by_name(mesh: Mesh) -> None:
    """No option, no library: gRPC's own proxy variable is all that is set."""
    process = mesh.run("visitor", sys.executable, CLIENT, "echo-remora:50051", "20")
    assert process.wait() == 0, process.err
    assert json.loads(process.out) == {"outcomes": {"OK": 20}, "said": {"remora-1": 20}}


@pytest.mark.parametrize(
    "target", ["echo-remora:80", "echo-remora.default:80", "echo-remora:1", "echo-remora.default:65535"]
)
@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_service_is_reached_by_its_name_at_any_port(mesh: Mesh, engine: str, target: str) -> None:
    caller = mesh.caller(engine)
    assert caller.says(caller.stub(target)) == "remora-1"


def test_the_short_name_is_of_the_own_namespace(mesh: Mesh) -> None:
    caller = mesh.caller(service="caller.elsewhere")
    assert caller.says(caller.stub("echo-remora.default:80")) == "remora-1"
    with pytest.raises(grpc.RpcError) as caught:
        caller.says(caller.stub("echo-remora:80"))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert 'no service named "echo-remora:80" in the mesh' in error.details()


def test_an_instance_that_calls_its_own_service_is_answered(mesh: Mesh) -> None:
    """A service may call itself by name, through its own sidecar and back."""
    process = mesh.run("echo-remora", sys.executable, CLIENT, "echo-remora:50051", "4")
    assert process.wait() == 0, process.err
    assert json.loads(process.out)["outcomes"] == {"OK": 4}


def test_a_program_that_dials_localhost_is_not_proxied(mesh: Mesh) -> None:
    port = mesh.echo("direct-1", "direct").until(r"listening on (\d+)", "out")[1]
    for host in ("localhost", "127.0.0.1"):
        process = mesh.run("visitor", sys.executable, CLIENT, f"{host}:{port}", "2")
        assert process.wait() == 0, process.err
        assert json.loads(process.out)["said"] == {"direct-1": 2}


@pytest.fixture(autouse=True)
def _nothing_is_left_connected(mesh: Mesh) -> Iterator[None]:
    yield
    for engine in ("remora", "envoy"):
        mesh.caller(engine).close()
