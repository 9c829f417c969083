"""The life of a program under `remora run`: what it is given, when others find it, how it ends."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from proto.mesh.v1 import service_pb2
from remora.agent.child import tree
from tests.end_to_end.programs.schema import messages, services
from tests.mesh import NO_PROXY, SERVER, Mesh, Process, is_alive, load
from tests.waiting import eventually

LEASE_S = 5
"""The shortest that there is."""


# -- what the program is given --------------------------------------------------------------------------


def test_the_program_owns_standard_output_and_its_arguments(guests: Mesh) -> None:
    code = "import sys; sys.stdout.write('|'.join(sys.argv[1:])); sys.stderr.write('of the program')"
    words = ["--version", "-o", "json", "a b", "", "--", "*"]
    result = guests.remora("run", "--service", "plain", "--", sys.executable, "-c", code, *words)
    assert result.code == 0
    assert result.out == "|".join(words)
    assert result.err.endswith("of the program")  # on a slow machine we may have said that we wait


def test_the_program_is_told_its_port_and_where_its_calls_go(guests: Mesh) -> None:
    names = ("PORT", "grpc_proxy", "no_grpc_proxy", "GRPC_VERBOSITY", "MINE")
    code = f"import os; print([os.environ.get(name) for name in {names}])"
    result = guests.remora(
        "run", "--service", "plain", "--port", "7001", "--", sys.executable, "-c", code, MINE="1", no_grpc_proxy="db"
    )
    port, proxy, bypass, verbosity, mine = eval(result.out)
    assert port == "7001"
    assert proxy.startswith("http://127.0.0.1:")
    assert bypass.split(",") == ["db", "localhost", "127.0.0.1", "::1"]
    assert verbosity is None  # what we set for ourselves is not passed on
    assert mine == "1"


def test_the_exit_code_is_the_programs(guests: Mesh) -> None:
    codes = {"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -KILL $$": 137, "kill -TERM $$": 143}
    running = {script: guests.run("plain", "sh", "-c", script) for script in codes}
    assert {script: process.wait() for script, process in running.items()} == codes


def test_signals_are_passed_on(guests: Mesh) -> None:
    process = guests.echo("signalled-1", "signalled")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        process.send(number)
        process.until(f"got {number.name}", "out")
    assert process.is_running


# -- when others find it --------------------------------------------------------------------------------


def test_a_program_is_found_once_it_is_healthy(guests: Mesh) -> None:
    process = guests.echo("late-1", "late", START_S="1.5", is_awaited=False)
    process.child("server.py")
    assert guests.instances("late") == []
    process.until("listening", "out")
    guests.until_healthy("late-1", service="late")


def test_a_program_without_a_health_service_is_found_once_it_listens(guests: Mesh) -> None:
    guests.echo("silent-1", "silent", HEALTH="none")
    stub = guests.caller().stub("silent:1")
    eventually(lambda: _answers(stub))


def test_health_is_followed_both_ways(guests: Mesh) -> None:
    """A program that says it does not serve is not found; later it is taken out and put back as it says."""
    process = guests.echo("moody-1", "moody", HEALTH="not-serving", is_awaited=False)
    port = process.until(r"listening on (\d+)", "out")[1]
    stub = guests.caller().stub("moody:1")
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=list(NO_PROXY)) as channel:
        direct = services.EchoStub(channel)
        direct.Unary(messages.Note(), timeout=5)  # it answers, and yet
        assert guests.instances("moody") == []
        direct.SetServing(messages.Serving(is_serving=True), timeout=5)
        guests.until_healthy("moody-1", service="moody")
        eventually(lambda: _answers(stub))
        direct.SetServing(messages.Serving(is_serving=False), timeout=5)
        eventually(lambda: [each.health for each in guests.instances("moody")] == [service_pb2.UNHEALTHY])
        eventually(lambda: "no healthy" in _refusal(stub), message="calls still go there")
        direct.SetServing(messages.Serving(is_serving=True), timeout=5)
        guests.until_healthy("moody-1", service="moody")
        eventually(lambda: _answers(stub))
    assert "not healthy any more" in process.err and "healthy again" in process.err


def _refusal(stub: Any) -> str:
    try:
        stub.Unary(messages.Note(), timeout=5)
    except grpc.RpcError as error:
        failed: Any = error
        return f"{failed.code().name}: {failed.details()}"
    return ""


def _answers(stub: Any) -> bool:
    return _refusal(stub) == ""


def test_many_instances_at_once_share_the_calls(guests: Mesh) -> None:
    names = [f"crowd-{number}" for number in range(5)]
    for name in names:
        guests.echo(name, "crowd", is_awaited=False)
    guests.until_healthy(*names, service="crowd")
    caller = guests.caller()
    stub = caller.stub("crowd:80")
    eventually(lambda: len({caller.says(stub) for _ in names}) == len(names))
    answers = [caller.says(stub) for _ in range(50)]
    assert {name: answers.count(name) for name in names} == dict.fromkeys(names, 10)


# -- how it ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_stopped_instance_leaves_at_once_and_no_call_fails(guests: Mesh, engine: str) -> None:
    """SIGTERM under load from another program: new calls go elsewhere, the one that runs is finished."""
    service = f"stopped-{engine}"
    stays = guests.echo("stays", service, engine=engine, is_awaited=False)
    leaves = guests.echo("leaves", service, engine=engine, EXIT_CODE="3", is_awaited=False)
    guests.until_healthy("stays", "leaves", service=service)
    caller = guests.caller()
    stub = caller.stub(f"{service}:80")
    with load(lambda: caller.says(stub)) as calls:
        eventually(lambda: calls.instances["leaves"] > 10)
        long_calls = [stub.Slow.future(messages.Wait(milliseconds=1500), timeout=20) for _ in range(8)]
        calls.more(20)
        leaves.send(signal.SIGTERM)
        eventually(lambda: guests.healthy(service) == ["stays"], timeout_s=1.5, message="it did not leave at once")
        assert {call.result().instance for call in long_calls} == {"stays", "leaves"}
        assert leaves.wait() == 3
        assert [each.id for each in guests.instances(service)] == ["stays"]
        calls.more(50)
    assert calls.failed == {}
    assert stays.is_running and "did not" not in leaves.err and "not every caller" not in leaves.err


@contextmanager
def typist(mesh: Mesh, *words: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A command on a terminal of its own, and the side where a person types and reads."""
    person, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "remora", *words],
        stdin=terminal, stdout=terminal, stderr=terminal, env=mesh.environment(), start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    try:
        yield process, person
    finally:
        for pid in tree(process.pid) if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        os.close(person)


def read_until(person: int, text: str) -> None:
    """What the terminal shows, until it holds a text."""
    seen = b""

    def look() -> bool:
        nonlocal seen
        while select.select([person], [], [], 0)[0]:
            try:
                more = os.read(person, 4096)
            except OSError:  # nobody has the other side open any more
                break
            if not more:
                break
            seen += more
        return text.encode() in seen

    eventually(look, timeout_s=20, message=f"no {text!r} in {seen!r}")


def test_a_program_that_reads_from_the_terminal_gets_it(guests: Mesh) -> None:
    code = "import os; print('name?', flush=True); print('hello ' + input()); print(os.tcgetpgrp(0) == os.getpgrp())"
    with typist(guests, "run", "--service", "reader", "--", sys.executable, "-c", code) as (process, person):
        read_until(person, "name?")
        os.write(person, b"mesh\n")
        read_until(person, "hello mesh")
        assert process.wait(20) == 0


def test_ctrl_c_on_a_terminal_drains_a_server(guests: Mesh) -> None:
    words = ("run", "--service", "served", "--instance", "served-1", "--", sys.executable, SERVER)
    with typist(guests, *words) as (process, person):
        guests.until_healthy("served-1", service="served")
        stub = guests.caller().stub("served:80")
        eventually(lambda: _answers(stub))
        call = stub.Slow.future(messages.Wait(milliseconds=700), timeout=20)
        assert _answers(stub)
        os.write(person, b"\x03")
        assert call.result().text == "done"
        assert process.wait(20) == 0
    assert guests.instances("served") == []


def test_a_second_signal_cuts_the_wait_short(guests: Mesh) -> None:
    process = guests.echo("urgent-1", "urgent", STOP_S="0")
    stub = guests.caller().stub("urgent:80")
    eventually(lambda: _answers(stub))
    call = stub.Slow.future(messages.Wait(milliseconds=25_000), timeout=30)
    assert _answers(stub)
    process.send(signal.SIGTERM)
    eventually(lambda: [each.health for each in guests.instances("urgent")] == [service_pb2.DRAINING])
    assert process.is_running
    process.send(signal.SIGTERM)
    assert process.wait(10) == 0
    assert call.exception(10) is not None
    assert guests.instances("urgent") == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_call_that_takes_longer_than_the_lease_is_finished_in_a_drain(guests: Mesh, engine: str) -> None:
    service = f"long-{engine}"
    process = guests.echo("long-1", service, options=("--ttl", f"{LEASE_S}s"), STOP_S="1")
    stub = guests.caller(engine).stub(f"{service}:80")
    eventually(lambda: _answers(stub))
    call = stub.Slow.future(messages.Wait(milliseconds=2000 * LEASE_S), timeout=30)
    assert _answers(stub)
    process.send(signal.SIGTERM)
    assert call.result().instance == "long-1"
    assert process.wait() == 0


def test_a_killed_instance_is_gone_within_its_lease(guests: Mesh) -> None:
    guests.echo("survivor", "killed", is_awaited=False)
    victim = guests.echo("victim", "killed", options=("--ttl", f"{LEASE_S}s"), is_awaited=False)
    guests.until_healthy("survivor", "victim", service="killed")
    caller = guests.caller()
    stub = caller.stub("killed:80")
    with load(lambda: caller.says(stub)) as calls:
        eventually(lambda: calls.instances["victim"] > 10)
        victim.kill()
        failed_at_once = calls.failed
        eventually(lambda: guests.healthy("killed") == ["survivor"], timeout_s=LEASE_S + 1)
        # What was under way may be lost; what comes later finds nobody there, and is sent to the survivor.
        assert sum(calls.failed.values()) - sum(failed_at_once.values()) <= 4, calls.failed
        assert all(text.startswith("UNAVAILABLE: ") for text in calls.failed)
        after = calls.failed
        calls.more(50)
        assert calls.failed == after


def test_whoever_kills_us_leaves_no_process_behind(guests: Mesh) -> None:
    process = guests.echo("orphan-1", "orphan")
    pids = tree(process.pid)
    assert len(pids) == 3  # we, the sidecar, the program
    process.send(signal.SIGKILL)
    process.wait()
    eventually(lambda: not any(map(is_alive, pids)), message="somebody is left")


def test_a_program_that_crashes_takes_its_instance_along(guests: Mesh) -> None:
    process = guests.echo("fragile-1", "fragile")
    stub = guests.caller().stub("fragile:80")
    eventually(lambda: _answers(stub))
    with pytest.raises(grpc.RpcError) as caught:
        stub.Crash(messages.Note(count=9), timeout=5)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "closed the connection (flag UC)" in error.details()
    assert process.wait() == 9
    assert guests.instances("fragile") == []
    eventually(lambda: "no healthy" in _refusal(stub) or "no service" in _refusal(stub))


def test_a_program_that_is_restarted_behind_its_sidecar_is_unavailable_until_it_is_back(
    guests: Mesh, tmp_path: Path
) -> None:
    """A supervisor starts it again: callers are told why there is no answer, and calls flow when it is back."""
    hold = tmp_path / "hold"
    script = f"{sys.executable} {SERVER}; while [ -e {hold} ]; do sleep 0.05; done; exec {sys.executable} {SERVER}"
    process = guests.run("phoenix", "sh", "-c", script, options=("--instance", "phoenix-1"), INSTANCE="phoenix-1")
    process.until("registered as")
    stub = guests.caller().stub("phoenix:80")
    eventually(lambda: _answers(stub))
    hold.touch()
    with pytest.raises(grpc.RpcError):
        stub.Crash(messages.Note(), timeout=5)
    refusal = _refusal(stub)
    assert refusal.startswith("UNAVAILABLE: "), refusal
    assert "127.0.0.1" in refusal or "no healthy" in refusal, refusal
    hold.unlink()
    eventually(lambda: _answers(stub), timeout_s=20)
    assert process.is_running


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_sidecar_that_is_killed_is_started_again(guests: Mesh, engine: str) -> None:
    process = guests.echo(f"guarded-{engine}", f"guarded-{engine}", engine=engine)
    stub = guests.caller().stub(f"guarded-{engine}:80")
    eventually(lambda: _answers(stub))
    program, sidecar = process.child("server.py"), process.child("sidecar" if engine == "remora" else "envoy")
    os.kill(sidecar, signal.SIGKILL)
    process.until("the sidecar ended with exit code 137; starting it again")
    eventually(lambda: _answers(stub), timeout_s=20, message="calls do not flow again")
    assert is_alive(program) and guests.healthy(f"guarded-{engine}") == [f"guarded-{engine}"]


def test_an_instance_that_cannot_be_registered_is_not_started(guests: Mesh, tmp_path: Path) -> None:
    mark = tmp_path / "started"
    for options in (
        ["--instance", "bad name"],
        ["--version", "v 1"],
        ["--ttl", "1s"],
        ["--weight", "0"],
        ["--port", "-1"],
    ):
        result = guests.remora("run", "--service", "plain", *options, "--", "touch", str(mark))
        assert (result.code, result.out) == (2, ""), options
        assert result.err.count("\n") == 1 and "Traceback" not in result.err, result.err
    assert not mark.exists()


def _early(mesh: Mesh) -> Process:
    """A program that waits for a control plane that is not there."""
    words = ("run", "--service", "early", "--server", "127.0.0.1:1", "--", sys.executable, SERVER)
    return mesh.spawn(*words, name="early")


def test_waiting_for_the_control_plane_can_be_interrupted(guests: Mesh) -> None:
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143}
    running = {number: _early(guests) for number in codes}
    for number, process in running.items():
        process.until("waiting for the control plane at 127.0.0.1:1")
        process.send(number)
    assert {number: process.wait(10) for number, process in running.items()} == codes


@pytest.mark.slow
def test_without_a_control_plane_the_program_is_not_started(guests: Mesh) -> None:
    process = _early(guests)
    assert process.wait(60) == 3
    assert "is `remora up` running there?" in process.err and "Traceback" not in process.err
    assert process.out == ""
