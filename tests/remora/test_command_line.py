"""Every command with right and wrong input: exit code, one plain sentence on standard error, data on standard output, never a traceback."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from remora import cli
from tests.mesh import ROOT, Mesh, Result, environment, running
from tests.ports import free_ports
from tests.tools import envoy
from tests.waiting import eventually

ROUTE: Final = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata:
  name: {name}
spec:
  parentRefs:
  - name: {service}
  rules:
  - backendRefs:
    - name: {backend}
"""
SERVICE: Final = """
apiVersion: remora.dev/v1
kind: Service
metadata:
  name: {name}
spec:
  ports:
  - port: 50051
"""
FAULTS: Final = """\
apiVersion: remora.dev/v1
kind: Service
metadata:
  name: innocent
spec: {}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata:
  name: split
spec:
  parentRefs:
  - name: echo
  rules:
  - backendRefs:
    - name: echo-v1
      weight: 0
    - name: echo-v2
      weight: 0
---
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata:
  name: limit
spec:
  targetRefs:
  - name: echo
  requests: many
  color: red
"""


def is_plain(result: Result) -> bool:
    """One sentence on standard error, nothing on standard output, no traceback."""
    return (
        result.out == "" and result.err.endswith("\n") and result.err.count("\n") == 1 and "Traceback" not in result.err
    )


# -- wrong usage ----------------------------------------------------------------------------------------

WRONG: Final[dict[str, str]] = {
    "nonsense": "no such command",
    "status --bogus": "no such option: --bogus",
    "status -o xml": "'xml' is not one of 'table', 'json', 'yaml'",
    "status extra": "unexpected extra argument",
    "status --server nonsense": '--server: "nonsense" is not HOST:PORT',
    "status --server 127.0.0.1:99999": '--server: "127.0.0.1:99999" is not HOST:PORT',
    "endpoints": "missing argument",
    "endpoints Not_A_Name": 'service "Not_A_Name" is not NAME or NAME.NAMESPACE',
    "endpoints a.b.c": 'service "a.b.c" is not NAME or NAME.NAMESPACE',
    "register echo": "missing argument",
    "register echo 127.0.0.1": '"127.0.0.1" is not HOST:PORT',
    "register echo localhost:80": '"localhost" is no IP address',
    "register echo 127.0.0.1:0": "port: 0 is out of range",
    "register echo 127.0.0.1:80 --ttl 1s": '--ttl: "1s" is no lease; from 5s to 1h',
    "register echo 127.0.0.1:80 --ttl 2h": '--ttl: "2h" is no lease; from 5s to 1h',
    "register echo 127.0.0.1:80 --weight -1": "--weight",
    "register echo 127.0.0.1:80 --server x": '--server: "x" is not HOST:PORT',
    "run": "missing option '--service'",
    "run --service echo": "no program given; write it behind --",
    "run --service echo --": "no program given; write it behind --",
    "run --service ECHO -- true": 'service "ECHO" is not NAME',
    "run --service echo --engine nginx -- true": '--engine: "nginx" is not known; known: remora, envoy',
    "run --service echo --port 99999 -- true": "--port",
    "run --service echo --ttl soon -- true": '--ttl: "soon" is no duration',
    "run --service echo -- /no/such/program": 'cannot start "/no/such/program": there is no such program',
    "sidecar": "missing option '--config'",
    "sidecar -c FILE --service echo": "--config and --service say the same; give one of them",
    "sidecar --service echo --inbound here": '--inbound: "here" is not HOST:PORT',
    "ready --admin here": '--admin: "here" is not HOST:PORT',
    "inject -f /no/such/file": "/no/such/file: no such file or directory",
    "sidecar -c /no/such/file": "/no/such/file: cannot be read: no such file or directory",
    "bootstrap": "missing option '--service'",
    "bootstrap --service echo --engine nginx": '--engine: "nginx" is not known; known: remora, envoy, grpc',
    "bootstrap --service echo --inbound nowhere": '--inbound: "nowhere" is not HOST:PORT',
    "apply": "missing option '--filename'",
    "apply -f /no/such/file": "-f /no/such/file: no such file or directory",
    "apply -f /": "-f /: is a directory",
    "apply -f x.yaml --timeout never": '--timeout: "never" is no duration',
    "apply -f x.yaml --timeout 99999999h": '--timeout: "99999999h" is too long',
    "get": "missing argument",
    "get nonsense": 'kind "nonsense" is not known; known: Service, GRPCRoute',
    "get grpcroute Not_A_Name": 'name: "Not_A_Name" has a form that is not allowed',
    "delete grpcroute": "missing argument",
    "delete nonsense x": 'kind "nonsense" is not known',
    "diff": "missing option '--filename'",
    "diff -f /no/such/file": "no such file or directory",
    "history grpcroute": "missing argument",
    "history nonsense x": 'kind "nonsense" is not known',
    "rollback grpcroute": "missing argument",
    "rollback nonsense x": 'kind "nonsense" is not known',
    "rollback grpcroute x --to 0": "--to",
    "rollback grpcroute x --timeout never": '--timeout: "never" is no duration',
    "up --listen nowhere": '--listen: "nowhere" is not HOST:PORT',
    "up --listen 192.0.2.1:0 --http 127.0.0.1:0": "cannot listen on 192.0.2.1:0",
    "up --listen 127.0.0.1:0 --store etcd://": "HOST:PORT",
    "demo --engine nginx": '--engine: "nginx" is not known; known: remora, envoy, mixed',
    "demo --for ever": '--for: "ever" is no duration',
}
"""Command line: what the sentence on standard error must hold. All end with 2."""


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_is_said_in_one_sentence_and_ends_with_2(
    words: str, shared: Mesh, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, since they are many; none of them gets as far as starting anything."""
    monkeypatch.setattr(sys, "argv", ["remora", *words.split()])
    monkeypatch.setenv("REMORA_SERVER", shared.server)
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    with pytest.raises(SystemExit) as exited:
        cli.main()
    said = capsys.readouterr()
    result = Result(int(exited.value.code or 0), said.out, said.err)
    assert result.code == 2 and is_plain(result), result
    assert WRONG[words] in result.err


def test_an_empty_server_is_no_server(shared: Mesh) -> None:
    result = shared.remora("status", "--server", "")
    assert result.code == 2 and is_plain(result)


def test_help_and_version_go_to_standard_output(shared: Mesh) -> None:
    version, top, run = (shared.remora(*words) for words in (["--version"], ["-h"], ["run", "--help"]))
    assert (version.code, version.out, version.err) == (0, "remora 0.1.0\n", "")
    assert top.code == run.code == 0 and top.err == run.err == ""
    for command in (
        "up",
        "run",
        "sidecar",
        "apply",
        "get",
        "delete",
        "diff",
        "history",
        "rollback",
        "status",
        "endpoints",
        "register",
        "demo",
    ):
        assert command in top.out
    assert "--service" in run.out


# -- nobody there ---------------------------------------------------------------------------------------


def test_without_a_control_plane_commands_end_with_3_and_say_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(SERVICE.format(name="echo"))
    (port,) = free_ports(1)
    commands = (
        ["status"], ["endpoints", "echo"], ["apply", "-f", str(file)], ["get", "all"], ["diff", "-f", str(file)],
        ["delete", "service", "echo"], ["deregister", "echo", "1.2.3.4:5"],
        ["history", "service", "echo"], ["rollback", "service", "echo"],
    )  # fmt: skip

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "remora", *words], env=environment(REMORA_SERVER=f"127.0.0.1:{port}"), cwd=ROOT,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    with ThreadPoolExecutor(4) as threads:
        for done in threads.map(run, commands):
            assert done.returncode == 3
            assert done.stdout == ""
            assert done.stderr == (
                f"remora: no control plane at 127.0.0.1:{port}; start one with `remora up`, "
                "or say where it is with --server or REMORA_SERVER\n"
            )


def test_something_that_is_no_control_plane_is_told_apart(shared: Mesh) -> None:
    http = shared.remora("status", "--server", shared.http)
    unknown = shared.remora("status", "--server", "no-such-host.invalid:1")
    for result in (http, unknown):
        assert result.code == 3 and is_plain(result)
    port = shared.echo("not-a-plane", "not-a-plane").until(r"listening on (\d+)", "out")[1]
    other = shared.remora("status", "--server", f"127.0.0.1:{port}")
    assert other.code == 1 and is_plain(other)
    assert f"127.0.0.1:{port} is no Remora control plane" in other.err


@pytest.mark.slow
def test_a_server_that_says_nothing_is_not_waited_for_for_ever(shared: Mesh) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        server = f"127.0.0.1:{mute.getsockname()[1]}"
        result = shared.remora("status", "--server", server)
    assert (result.code, result.err) == (3, f"remora: the control plane at {server} did not answer within 10 s\n")


def test_a_port_that_is_taken_is_named(shared: Mesh, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    api = shared.remora("up", "--listen", shared.server, "--http", "127.0.0.1:0", *store)
    http = shared.remora("up", "--listen", "127.0.0.1:0", "--http", shared.http, *store)
    for result, address in ((api, shared.server), (http, shared.http)):
        assert result.code == 2 and is_plain(result)
        assert result.err.startswith(f"remora up: cannot listen on {address}: ")


def test_a_store_that_is_in_use_is_left_alone(shared: Mesh) -> None:
    result = shared.remora("up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", shared.store)
    assert result.code == 3 and is_plain(result)
    assert f"store {shared.store} is open in another process (pid {shared.plane.pid})" in result.err


def test_a_store_that_cannot_be_is_said(shared: Mesh) -> None:
    for store in ("/dev/null/store", "etcd://127.0.0.1:1"):
        result = shared.remora("up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", store)
        assert result.code == 3 and is_plain(result), result


def test_the_control_plane_stops_when_it_is_told_to(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with running(tmp_path) as mesh:
            mesh.plane.send(number)
            assert mesh.plane.wait(10) == 0
            assert mesh.plane.err.count("\n") == 1 and mesh.plane.out == ""


# -- resources ------------------------------------------------------------------------------------------


def test_nothing_of_a_file_with_faults_is_stored_and_each_fault_shows_the_way_out(shared: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "faults.yaml"
    file.write_text(FAULTS)
    for words in (["apply", "-f", str(file)], ["apply", "--dry-run", "-f", str(file)], ["diff", "-f", str(file)]):
        result = shared.remora(*words)
        assert (result.code, result.out) == (2, "")
        first, *lines = result.err.splitlines()
        assert first == "remora: nothing was applied:"
        weights, kind, unknown = sorted(lines)
        assert weights.startswith(f"  {file}:15: spec.rules[0]") and "weight" in weights and "above 0" in weights
        assert kind.startswith(f'  {file}:28: spec.requests: "many" is not a whole number')
        assert unknown.startswith(f"  {file}:29: spec.color: unknown field; known here: ")
    assert "innocent" not in shared.remora("get", "all", "-A", "-o", "json").out


def test_one_bad_file_keeps_the_good_ones_out(shared: Mesh, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(SERVICE.format(name="bystander"))
    bad.write_text("kind: [")
    result = shared.remora("apply", "-f", str(good), "-f", str(bad))
    assert result.code == 2 and f"{bad}:1: is no YAML" in result.err
    assert shared.remora("get", "service", "bystander").code == 1


def test_a_resource_is_applied_shown_changed_and_deleted(shared: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "route.yaml"
    file.write_text(ROUTE.format(name="way", service="here", backend="there"))

    assert shared.remora("diff", "-f", str(file)).code == 1
    dry = shared.remora("apply", "--dry-run", "-f", str(file))
    assert (dry.code, dry.out) == (0, "GRPCRoute default/way created (dry run)\n")
    assert shared.remora("get", "grpcroute", "way").err == "remora: no GRPCRoute default/way\n"

    created = shared.remora("apply", "-f", str(file))
    assert (created.code, created.out) == (0, "GRPCRoute default/way created\n")
    # A route to a service that is not there yet is stored, and says so.
    said = "no service there.default yet; calls to it get UNAVAILABLE"
    assert said in created.err
    assert shared.remora("apply", "-f", str(file)).out == "GRPCRoute default/way unchanged\n"
    same = shared.remora("diff", "-f", str(file))
    assert (same.code, same.out, same.err) == (0, "", "")

    file.write_text(ROUTE.format(name="way", service="here", backend="elsewhere"))
    changed = shared.remora("diff", "-f", str(file))
    assert changed.code == 1
    assert [line for line in changed.out.splitlines() if line[0] in "+-"] == [
        "--- stored GRPCRoute default/way",
        "+++ given GRPCRoute default/way",
        "-    - name: there",
        "+    - name: elsewhere",
    ]
    assert shared.remora("apply", "-f", str(file)).out == "GRPCRoute default/way configured\n"

    table = shared.remora("get", "grpcroutes")
    assert table.out.splitlines()[0].split() == ["KIND", "NAMESPACE", "NAME", "GENERATION", "AGE", "STATUS"]
    assert table.out.splitlines()[1].split()[:4] == ["GRPCRoute", "default", "way", "2"]
    as_json, as_yaml = (shared.remora("get", "GRPCRoute", "way", "-o", form) for form in ("json", "yaml"))
    shown = json.loads(as_json.out)
    assert shown == YAML(typ="safe").load(as_yaml.out)
    assert (shown["kind"], shown["metadata"]["generation"]) == ("GRPCRoute", 2)
    conditions = {each["type"]: each for each in shown["status"]["conditions"]}
    assert conditions["ResolvedRefs"]["status"] == "False" and conditions["Accepted"]["status"] == "True"
    assert conditions["Accepted"]["observedGeneration"] == 2

    # What was shown can be given back.
    assert shared.remora("apply", "-f", "-", text=as_yaml.out).out == "GRPCRoute default/way unchanged\n"

    gone = shared.remora("delete", "grpcroute", "way", "--wait")
    assert (gone.code, gone.out) == (0, "grpcroute default/way deleted\n")
    again = shared.remora("delete", "grpcroute", "way")
    assert (again.code, again.err) == (1, "remora: no GRPCRoute default/way\n")


def test_a_stale_resource_version_is_not_overwritten(shared: Mesh) -> None:
    shared.apply(SERVICE.format(name="raced"))
    seen = shared.remora("get", "service", "raced", "-o", "yaml").out
    shared.apply(SERVICE.format(name="raced").replace("50051", "50052"))
    result = shared.remora("apply", "-f", "-", text=seen)
    assert result.code == 1 and "somebody else changed it" in result.err
    shared.remora("delete", "service", "raced")


def test_a_resource_is_what_it_was_again(shared: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "route.yaml"

    def apply(backend: str, *words: str) -> Result:
        file.write_text(ROUTE.format(name="past", service="here", backend=backend))
        return shared.remora("apply", "-f", str(file), *words)

    assert apply("one").code == apply("two").code == 0
    dry = apply("three", "--dry-run")
    assert dry.out == "GRPCRoute default/past configured (dry run)\n"
    assert '  spec.rules[0].backendRefs[0].name: "two" becomes "three"' in dry.err.splitlines()
    difference = json.loads(shared.remora("diff", "-f", str(file), "-o", "json").out)["items"]
    changes = [{"path": "spec.rules[0].backendRefs[0].name", "before": '"two"', "after": '"three"'}]
    assert [(each["name"], each["outcome"], each["changes"]) for each in difference] == [
        ("past", "configured", changes)
    ]

    def history() -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = json.loads(shared.remora("history", "grpcroute", "past", "-o", "json").out)[
            "revisions"
        ]
        return shown

    second, first = history()
    assert [each["resource"]["metadata"]["generation"] for each in (second, first)] == [2, 1]
    assert first["by"] == second["by"] and "@" in first["by"]

    dry = shared.remora("rollback", "grpcroute", "past", "--dry-run")
    assert dry.out == f"GRPCRoute default/past rolled back to revision {first['revision']} (dry run)\n"
    assert len(history()) == 2
    done = shared.remora("rollback", "grpcroute", "past", "--to", str(first["revision"]), "--wait")
    assert (done.code, done.out) == (0, f"GRPCRoute default/past rolled back to revision {first['revision']}\n")
    assert '  spec.rules[0].backendRefs[0].name: "two" becomes "one"' in done.err.splitlines()
    same = shared.remora("rollback", "grpcroute", "past", "--to", str(history()[0]["revision"]))
    assert (same.code, same.out.split(" at ")[0]) == (0, "GRPCRoute default/past is as it was")

    shared.remora("delete", "grpcroute", "past")
    table = shared.remora("history", "grpcroute", "past").out.splitlines()
    assert table[0].split() == ["REVISION", "GENERATION", "WHEN", "WHO", "WHAT", "CHANGED"]
    assert " deleted " in table[1] and f" rolled back to {first['revision']} " in table[2]
    back = shared.remora("rollback", "grpcroute", "past")
    assert back.code == 0 and "one" in shared.remora("get", "grpcroute", "past", "-o", "yaml").out
    for words in (
        ["rollback", "grpcroute", "past", "--to", "999999"],
        ["rollback", "service", "never"],
        ["history", "service", "never"],
    ):
        nothing = shared.remora(*words)
        assert nothing.code == 1 and is_plain(nothing), nothing
    shared.remora("delete", "grpcroute", "past")


# -- instances and state --------------------------------------------------------------------------------


def test_an_instance_is_registered_by_hand_as_long_as_the_command_runs(guests: Mesh) -> None:
    nobody = guests.remora("endpoints", "manual")
    assert (nobody.code, nobody.out, nobody.err) == (1, "", "no instance of manual.default is registered\n")
    words = ("register", "manual", "127.0.0.1:4711", "--version", "v2", "--weight", "3", "--ttl", "5s")
    process = guests.spawn(*words, name="register")
    process.until("remora register: registered as 127.0.0.1-4711 at 127.0.0.1:4711")
    as_json, as_yaml = (guests.remora("endpoints", "manual", "-o", form) for form in ("json", "yaml"))
    expected = {
        "address": "127.0.0.1:4711", "health": "HEALTHY", "version": "v2", "weight": 3, "locality": "",
        "instance": "127.0.0.1-4711",
    }  # fmt: skip
    assert json.loads(as_json.out) == {"service": "manual.default", "endpoints": [expected]}
    assert json.loads(as_json.out) == YAML(typ="safe").load(as_yaml.out)
    assert process.stop() == 0
    assert guests.instances("manual") == []


def test_an_instance_is_deregistered_by_hand(guests: Mesh) -> None:
    process = guests.spawn("register", "left.elsewhere", "127.0.0.1:4712", name="register")
    process.until("registered as")
    process.send(signal.SIGKILL)
    process.wait()
    done = guests.remora("deregister", "left.elsewhere", "127.0.0.1:4712")
    assert (done.code, done.out) == (0, "127.0.0.1-4712 of left.elsewhere deregistered\n")
    again = guests.remora("deregister", "left.elsewhere", "127.0.0.1:4712")
    assert (again.code, again.out) == (1, "")
    assert again.err == "no instance 127.0.0.1:4712 of left.elsewhere is registered\n"


def test_status_shows_every_node_in_all_forms(guests: Mesh) -> None:
    for engine in ("remora", "envoy"):
        guests.echo(f"seen-{engine}", "seen", engine=engine, options=("--version", "v7"), is_awaited=False)
    guests.until_healthy("seen-remora", "seen-envoy", service="seen")

    def nodes() -> dict[str, Any]:
        shown = json.loads(guests.remora("status", "-o", "json").out)
        return {node["engine"]: node for node in shown["nodes"] if node["service"] == "seen"}

    found = eventually(lambda: nodes() if len(nodes()) == 2 else {})
    for engine in ("remora", "envoy"):
        node = found[engine]
        assert node["id"] == f"seen.default~seen-{engine}" and node["version"] == "v7"
        assert node["adminAddress"].startswith("127.0.0.1:")
        assert {each["type"] for each in node["types"]} == {"CDS", "EDS", "LDS", "RDS"}
    table = guests.remora("status")
    assert table.out.splitlines()[0].split()[:4] == ["NODE", "SERVICE", "VERSION", "ENGINE"]
    assert sum("seen.default~seen-" in line for line in table.out.splitlines()) == 2
    assert f"control plane {guests.server}" in table.err
    assert {node["engine"] for node in YAML(typ="safe").load(guests.remora("status", "-o", "yaml").out)["nodes"]} >= {
        "remora",
        "envoy",
    }


# -- bootstrap ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["remora", "envoy"])
def test_a_bootstrap_is_taken_by_real_envoy(shared: Mesh, engine: str, tmp_path: Path) -> None:
    made = shared.remora("bootstrap", "--engine", engine, "--service", "echo.shop", "--node", "echo~1")
    assert made.code == 0 and made.err == ""
    assert json.loads(made.out)["node"]["id"] == "echo~1"
    file = tmp_path / "bootstrap.json"
    file.write_text(made.out)
    done = subprocess.run([envoy(), "--mode", "validate", "-c", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "OK" in done.stdout, done.stderr


def test_a_bootstrap_is_taken_by_our_sidecar(guests: Mesh, tmp_path: Path) -> None:
    inbound, outbound, admin = (f"127.0.0.1:{port}" for port in free_ports(3))
    words = ["bootstrap", "--service", "alone", "--inbound", inbound, "--outbound", outbound, "--admin", admin]
    file = tmp_path / "bootstrap.json"
    file.write_text(guests.remora(*words).out)
    process = guests.spawn("sidecar", "-c", str(file), name="sidecar")
    eventually(lambda: "alone.default" in guests.remora("status").out)
    assert process.stop() == 0
    assert "Traceback" not in process.err


def test_a_bootstrap_for_a_proxyless_client_names_the_control_plane(shared: Mesh) -> None:
    made = json.loads(shared.remora("bootstrap", "--engine", "grpc", "--service", "echo.shop").out)
    assert made["xds_servers"][0]["server_uri"] == shared.server
    assert made["node"]["cluster"] == "echo.shop"


# -- pipes and interrupts -------------------------------------------------------------------------------


@contextmanager
def started(mesh: Mesh, *words: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A command that a test holds in its hands; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "remora", *words],
        env=mesh.environment(), cwd=ROOT, text=True, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_has_seen_enough_is_no_failure(shared: Mesh) -> None:
    shared.apply(SERVICE.format(name="piped"))
    commands = (["get", "all"], ["get", "all", "-o", "yaml"], ["bootstrap", "--service", "x"], ["--version"])
    for words in commands:
        reader, writer = os.pipe()
        os.close(reader)
        with started(shared, *words, stdout=writer) as process:
            os.close(writer)
            assert (process.wait(30), process.stderr.read() if process.stderr else "") == (0, ""), words


def test_output_that_cannot_be_written_is_said(shared: Mesh) -> None:
    with open("/dev/full", "w") as full, started(shared, "bootstrap", "--service", "x", stdout=full) as process:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert err == "remora: cannot write to standard output: no space left on device\n"


def test_ctrl_c_ends_a_command_that_waits_with_130_and_no_word(shared: Mesh) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        server = f"127.0.0.1:{mute.getsockname()[1]}"
        with started(shared, "status", "--server", server, stdout=subprocess.DEVNULL) as process:
            mute.accept()  # it has connected, so it waits
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
            assert (process.returncode, err) == (130, "")
