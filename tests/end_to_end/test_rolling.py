"""Everything is replaced under load, one after the other: the sidecars on both sides of a call, and the programs. No call fails."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import grpc
import pytest

from tests.end_to_end.programs.schema import messages
from tests.mesh import Caller, Load, Mesh, Process, is_alive, load
from tests.waiting import eventually

TAKEN = "another sidecar has taken the place"


def replaced(process: Process, calls: Load | None = None) -> None:
    """Ask a sidecar to end; wait until another one is in its place, and it is gone."""
    before, old = process.err.count(TAKEN), process.child("sidecar")
    os.kill(old, signal.SIGTERM)
    eventually(lambda: process.err.count(TAKEN) == before + 1, message=process.err)
    if calls is not None:
        calls.more(50)
    eventually(lambda: not is_alive(old), message="the old sidecar does not end")


def fresh(caller: Caller) -> Callable[[], str]:
    """A call on a connection of its own: it finds out whether somebody listens."""

    def call() -> str:
        channel = grpc.insecure_channel(
            "echo:80", options=[("grpc.http_proxy", caller.proxy), ("grpc.use_local_subchannel_pool", 1)]
        )
        with channel:
            answer: Any = caller.schema.services.EchoStub(channel).Unary(messages.Note(text="hello"), timeout=10)
            return str(answer.instance)

    return call


def answers(stub: Any) -> bool:
    """True once calls get through."""
    try:
        stub.Unary(messages.Note(), timeout=5)
    except grpc.RpcError:
        return False
    return True


class Notes:
    """Requests of a stream that a test writes one by one."""

    def __init__(self) -> None:
        self._queue: Queue[Any] = Queue()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)

    def say(self, stream: Iterator[Any], text: str) -> str:
        """Send a message; what comes back."""
        self._queue.put(messages.Note(text=text))
        return str(next(stream).text)

    def close(self) -> None:
        self._queue.put(None)


def test_no_call_fails_while_sidecars_and_programs_are_replaced(mesh: Mesh) -> None:
    names = ["echo-1", "echo-2"]
    running = {name: mesh.echo(name, is_awaited=False) for name in names}
    mesh.until_healthy(*names)
    caller = mesh.caller()
    stub = caller.stub()
    eventually(lambda: answers(stub))
    with load(lambda: caller.says(stub)) as calls, load(fresh(caller), threads=2) as dials:
        dials.more(20)
        replaced(caller.process, calls)
        for process in running.values():
            replaced(process, calls)
        for name in names:
            assert running[name].stop() == 0
            running[name] = mesh.echo(name, is_awaited=False)
            mesh.until_healthy(*names)
            calls.more(50)
        replaced(caller.process, calls)
        dials.more(20)
    assert (calls.failed, dials.failed) == ({}, {})
    assert set(calls.instances) == set(names)


def test_the_only_instance_stays_reachable_while_its_sidecar_is_replaced(guests: Mesh) -> None:
    process = guests.echo("lonely-1", "lonely")
    caller = guests.caller()
    stub = caller.stub("lonely:80")
    eventually(lambda: answers(stub))
    with load(lambda: caller.says(stub)) as calls:
        for _ in range(3):
            replaced(process, calls)
    assert calls.failed == {}


def test_a_stream_goes_on_while_the_sidecars_on_its_way_are_replaced(guests: Mesh) -> None:
    process = guests.echo("steady-1", "steady")
    caller = guests.caller()
    stub = caller.stub("steady:80")
    eventually(lambda: answers(stub))
    notes = Notes()
    stream = stub.BidiStream(iter(notes), timeout=60)
    assert notes.say(stream, "before") == "before"
    olds = [each.child("sidecar") for each in (caller.process, process)]
    for each in (caller.process, process):
        before = each.err.count(TAKEN)
        os.kill(each.child("sidecar"), signal.SIGTERM)
        eventually(lambda each=each, before=before: each.err.count(TAKEN) == before + 1)  # type: ignore[misc]
        assert notes.say(stream, "between") == "between"
    assert all(is_alive(old) for old in olds)
    assert caller.says(stub) == "steady-1"
    notes.close()
    assert list(stream) == []
    eventually(lambda: not any(is_alive(old) for old in olds))


@pytest.mark.parametrize("moment", ["at once", "later"])
def test_calls_wait_while_the_callers_sidecar_has_crashed(guests: Mesh, moment: str) -> None:
    """Nobody has to know that it is away: the connection is taken, and answered by the next one."""
    guests.echo("patient-1", "patient")
    caller = guests.caller(service="patient-caller")
    stub = caller.stub("patient:80")
    eventually(lambda: answers(stub))
    os.kill(caller.process.child("sidecar"), signal.SIGKILL)
    if moment == "later":
        caller.process.until("exit code 137; starting it again")
    answer = caller.stub("patient:80").Unary(messages.Note(text="hello"), timeout=20)
    assert answer.instance == "patient-1"


def test_a_sidecar_stays_if_none_can_take_its_place(guests: Mesh) -> None:
    process = guests.echo("stays-1", "stays")
    caller = guests.caller()
    stub = caller.stub("stays:80")
    eventually(lambda: answers(stub))
    old = process.child("sidecar")
    words = Path(f"/proc/{old}/cmdline").read_bytes().split(b"\0")
    bootstrap = Path(words[words.index(b"-c") + 1].decode())
    good = bootstrap.read_text()
    bootstrap.write_text("this is no bootstrap")
    os.kill(old, signal.SIGTERM)
    process.until("one that could take its place does not start; it goes on")
    assert process.child("sidecar") == old
    bootstrap.write_text(good)
    with load(lambda: caller.says(stub)) as calls:
        calls.more(20)
        replaced(process, calls)
    assert calls.failed == {}
