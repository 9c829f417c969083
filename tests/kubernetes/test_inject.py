"""`remora inject` and `uninject`: what pods get, what they are spared, and that twice is once and back is back."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from control_plane.kubernetes.inject import CannotInject, Settings, inject, uninject
from tests.kubernetes import apiserver
from tests.mesh import ROOT, environment
from tests.ports import free_ports
from tests.waiting import eventually

SETTINGS: Final = Settings("remora.remora-system.svc:15010", "remora/sidecar:1")
TEXT: Final = """\
# the shop's orders
apiVersion: apps/v1
kind: Deployment
metadata:
  name: orders
  namespace: shop
spec:
  selector: {matchLabels: {app: orders}}
  template:
    metadata:
      labels: {app: orders, version: v1}
    spec:
      containers:
      - name: orders
        image: orders:1   # the program
        ports:
        - {name: grpc, containerPort: 50051}
        env:
        - {name: MODE, value: "yes"}
"""


def pod(**more: Any) -> dict[str, Any]:
    """A pod's template of one container, within `restricted`."""
    container = {
        "name": "orders",
        "image": "orders:1",
        "ports": [{"name": "grpc", "containerPort": 50051}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    secure = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"securityContext": secure, "containers": [container]}
    return {"metadata": {"labels": {"app": "orders"}, **more}, "spec": spec}


def owner(kind: str, **more: Any) -> dict[str, Any]:
    """An object that runs such pods."""
    template, metadata = pod(**more), {"name": "orders", "namespace": "shop"}
    selector = {"matchLabels": {"app": "orders"}}
    match kind:
        case "Pod":
            return {"apiVersion": "v1", "kind": kind, "metadata": {**metadata, **more}, "spec": template["spec"]}
        case "Job":
            template["spec"]["restartPolicy"] = "Never"
            return {"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": {"template": template}}
        case "CronJob":
            template["spec"]["restartPolicy"] = "Never"
            job = {"schedule": "@daily", "jobTemplate": {"spec": {"template": template}}}
            return {"apiVersion": "batch/v1", "kind": kind, "metadata": metadata, "spec": job}
    more_spec = {"serviceName": "orders"} if kind == "StatefulSet" else {}
    spec = {"selector": selector, "template": template, **more_spec}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}


def spec_of(document: Any) -> Any:
    """Of the pods of an object."""
    spec = document["spec"]
    while "containers" not in spec:
        spec = spec.get("template", spec.get("jobTemplate"))["spec"]
    return spec


KINDS: Final = ("Pod", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_runs_pods_gets_a_sidecar_that_starts_first_and_stays(kind: str) -> None:
    done = inject(owner(kind), SETTINGS)
    sidecar = spec_of(done.document)["initContainers"][0]
    assert done.is_changed
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("remora-sidecar", "Always")
    assert sidecar["startupProbe"]["exec"]["command"][:2] == ["remora", "ready"]
    assert "--service=orders.shop" in sidecar["args"]


@pytest.mark.parametrize("kind", KINDS)
def test_twice_is_once_and_back_is_back(kind: str) -> None:
    before = owner(kind)
    once = inject(before, SETTINGS).document
    assert inject(once, SETTINGS).document == once
    assert uninject(once).document == before
    assert not uninject(before).is_changed


def test_an_api_server_takes_what_comes_out_and_it_is_within_restricted() -> None:
    documents = [inject(owner(kind), SETTINGS).document for kind in KINDS]
    assert apiserver.faults_of_objects(documents) == [[]] * len(KINDS)


def test_the_check_of_pods_can_say_no() -> None:
    document = owner("Deployment")
    spec_of(document)["containers"][0]["securityContext"] = {"privileged": True}
    spec_of(document)["hostNetwrk"] = True
    del document["metadata"]["name"]
    [faults] = apiserver.faults_of_objects([document])
    assert "hostNetwrk" in " ".join(faults)


def test_init_containers_go_by_the_sidecar_too() -> None:
    document = owner("Deployment")
    spec_of(document)["initContainers"] = [{"name": "migrate", "image": "orders:1"}]
    [sidecar, migrate] = spec_of(inject(document, SETTINGS).document)["initContainers"]
    assert sidecar["name"] == "remora-sidecar"
    assert {"name": "grpc_proxy", "value": "http://127.0.0.1:15001"} in migrate["env"]


def test_new_settings_replace_old_ones() -> None:
    once = inject(owner("Deployment"), SETTINGS).document
    again = inject(once, Settings("other:15010", "remora/sidecar:2"))
    [sidecar] = spec_of(again.document)["initContainers"]
    assert sidecar["image"] == "remora/sidecar:2"
    assert "--server=other:15010" in sidecar["args"]


def test_what_a_container_says_itself_is_left_alone() -> None:
    document = owner("Deployment")
    own = [{"name": "grpc_proxy", "value": "http://10.0.0.1:3128"}]
    spec_of(document)["containers"][0]["env"] = list(own)
    done = inject(document, SETTINGS)
    assert spec_of(done.document)["containers"][0]["env"] == own
    assert any("sets grpc_proxy itself" in each for each in done.said)


def test_annotations_say_service_version_port_and_resources() -> None:
    said = {"service": "cart", "version": "v7", "port": "8080", "sidecar-cpu": "200m", "sidecar-memory": "1Gi"}
    document = owner("Deployment", annotations={f"remora.dev/{name}": value for name, value in said.items()})
    sidecar = spec_of(inject(document, SETTINGS).document)["initContainers"][0]
    assert {"--service=cart.shop", "--version=v7", "--app=127.0.0.1:8080"} < set(sidecar["args"])
    assert sidecar["resources"] == {"requests": {"cpu": "200m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}


def test_a_program_without_a_port_calls_and_is_not_called() -> None:
    document = owner("Job")
    del spec_of(document)["containers"][0]["ports"]
    sidecar = spec_of(inject(document, SETTINGS).document)["initContainers"][0]
    assert {"--inbound=0.0.0.0:0", "--app=127.0.0.1:0"} < set(sidecar["args"])


def test_a_pod_without_a_namespace_takes_that_in_which_it_comes_to_run() -> None:
    document = owner("Pod")
    del document["metadata"]["namespace"]
    sidecar = spec_of(inject(document, SETTINGS).document)["initContainers"][0]
    assert "--service=orders.$(POD_NAMESPACE)" in sidecar["args"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d["spec"]["template"]["metadata"].update(annotations={"remora.dev/inject": "disabled"}), "disabled"),
        (lambda d: d["metadata"].update(namespace="kube-system"), "kube-system is left alone"),
        (lambda d: d["metadata"].update(namespace="remora-system"), "remora-system is left alone"),
        (lambda d: spec_of(d).update(hostNetwork=True), "its node's network"),
    ],
)
def test_some_pods_get_none_and_it_is_said_why(change: Any, why: str) -> None:
    document = owner("Deployment")
    change(document)
    done = inject(document, SETTINGS)
    assert (done.document, done.is_changed) == (document, False)
    assert why in done.said[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d["spec"]["template"]["metadata"].update(annotations={"remora.dev/prot": "1"}), "prot is not known"),
        (lambda d: d["spec"]["template"]["metadata"].update(annotations={"remora.dev/port": "x"}), '"x" is no port'),
        (lambda d: d["spec"]["template"]["metadata"].update(annotations={"remora.dev/inject": "no"}), "enabled or dis"),
        (lambda d: d["metadata"].update(name="orders.v1"), "no name of a service"),
        (lambda d: d["spec"].pop("template"), "has no spec.template.spec"),
        (lambda d: spec_of(d)["containers"][0]["ports"].append({"name": "grpc2", "containerPort": 9}), "50051, 9"),
        (lambda d: spec_of(d)["containers"][0]["ports"].append({"containerPort": 15006}), "15006 is the sidecar's"),
        (lambda d: spec_of(d)["containers"].append({"name": "remora-sidecar"}), "was not injected"),
        (lambda d: spec_of(d).update(volumes=[{"name": "remora-state"}]), "was not injected"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: Any, why: str) -> None:
    document = owner("Deployment")
    change(document)
    with pytest.raises(CannotInject, match=why.replace(".", r"\.")):
        inject(document, SETTINGS)


def test_a_mark_of_another_release_is_not_guessed_at() -> None:
    document = inject(owner("Deployment"), SETTINGS).document
    document["spec"]["template"]["metadata"]["annotations"]["remora.dev/injected"] = '{"format":99}'
    with pytest.raises(CannotInject, match="not of this release"):
        uninject(document)


# -- the command --------------------------------------------------------------------------------------


def remora(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remora", *words],
        input=stdin, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment(), check=False,
    )  # fmt: skip


def test_the_command_keeps_comments_and_spelling_and_gives_back_what_it_got() -> None:
    service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: orders}\nspec: {ports: [{port: 80}]}\n"
    injected = remora("inject", "-f", "-", stdin=TEXT + service)
    assert injected.returncode == 0, injected.stderr
    assert "image: orders:1   # the program" in injected.stdout and '{name: MODE, value: "yes"}' in injected.stdout
    assert injected.stdout.endswith(service)
    assert remora("inject", "-f", "-", stdin=injected.stdout).stdout == injected.stdout
    assert remora("uninject", "-f", "-", stdin=injected.stdout).stdout == f"---\n{TEXT}{service}"


def test_explain_says_what_was_done_beside_the_documents() -> None:
    done = remora("inject", "--explain", "-f", "-", stdin=TEXT)
    assert "as orders.shop, calls come in by port 15006 and go to the program's 50051" in done.stderr
    assert "remora:" not in done.stdout.replace("remora-", "").replace("remora.", "")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kind: [", "is no YAML"),
        ("- 1\n", "no object of Kubernetes"),
        (TEXT.replace("name: orders\n  n", "name: O\n  n"), '"O"'),
    ],
)
def test_bad_input_is_one_line_and_no_output(text: str, why: str) -> None:
    done = remora("inject", "-f", "-", stdin=text)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_injected_container_runs_and_is_ready_once_it_has_its_configuration(tmp_path: Path) -> None:
    """Its very arguments, with addresses of this machine, against a real control plane."""
    xds, http, inbound, outbound, admin, app = free_ports(6)
    sidecar = spec_of(inject(owner("Pod"), SETTINGS).document)["initContainers"][0]
    replaced = {
        "--server": f"127.0.0.1:{xds}",
        "--inbound": f"127.0.0.1:{inbound}",
        "--app": f"127.0.0.1:{app}",
        "--outbound": f"127.0.0.1:{outbound}",
        "--admin": f"127.0.0.1:{admin}",
        "--snapshot": str(tmp_path / "snapshot"),
    }
    words = [
        f"{name}={replaced.get(name, value)}" if value else name
        for name, _, value in (a.partition("=") for a in sidecar["args"])
    ]
    probe = [*sidecar["startupProbe"]["exec"]["command"][1:-1], f"127.0.0.1:{admin}"]
    env = environment(XDG_STATE_HOME=str(tmp_path), TMPDIR=str(tmp_path))
    start = [sys.executable, "-m", "remora"]
    with subprocess.Popen([*start, *words], cwd=ROOT, env=env) as beside:
        try:
            assert remora(*probe).returncode == 1
            up = [
                "up",
                "--listen",
                f"127.0.0.1:{xds}",
                "--http",
                f"127.0.0.1:{http}",
                "--no-mtls",
                "--store",
                str(tmp_path / "s"),
            ]
            with subprocess.Popen([*start, *up], cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as plane:
                try:
                    eventually(lambda: remora(*probe).returncode == 0, timeout_s=60)
                finally:
                    plane.terminate()
        finally:
            beside.terminate()
    assert (tmp_path / "snapshot").exists()
