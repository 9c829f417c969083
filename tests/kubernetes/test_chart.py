"""The chart: linted, rendered over a matrix of values, valid to an API server, within Pod Security `restricted`, and the same as the golden files."""

import base64
import itertools
import json
import os
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from control_plane.identity import authority
from control_plane.resources import kinds
from tests.kubernetes import apiserver
from tests.kubernetes.apiserver import CHART, KUBERNETES, documents, helm, rendered
from tests.mesh import ROOT, environment
from tests.ports import free_ports
from tests.tools import need
from tests.waiting import eventually

GOLDEN: Final = Path(__file__).with_name("golden")
GIVEN_SECRETS: Final = {"identities": {"existingSecret": "authority"}, "operator": {"existingSecret": "operator"}}
EXTERNAL: Final = {
    "mode": "External",
    "external": {
        "endpoints": ["etcd-0.example:2379", "etcd-1.example:2379"],
        "tls": {"existingSecret": "etcd-tls", "clientCertificate": True, "serverName": "etcd.example"},
        "authSecret": "etcd-user",
    },
}
FILES: Final[dict[str, dict[str, Any]]] = {
    "default": GIVEN_SECRETS,
    "external": {**GIVEN_SECRETS, "etcd": EXTERNAL, "serviceMonitor": {"enabled": True, "labels": {"release": "prom"}}},
    "small": {
        "identities": {"enabled": False},
        "controlPlane": {"replicas": 1},
        "etcd": {"bundled": {"replicas": 1, "storage": {"keep": False}}},
        "networkPolicy": {"enabled": False},
        "rbac": {"aggregate": False},
    },
}
"""By golden file, its values."""
PLACEMENT: Final = {
    "nodeSelector": {"pool": "mesh"},
    "tolerations": [{"key": "mesh", "operator": "Exists"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "priorityClassName": "system-cluster-critical",
    "antiAffinity": "Required",
    "spreadOver": [],
}
MATRIX: Final[dict[str, list[dict[str, Any]]]] = {
    "etcd": [
        {},
        {"etcd": {"bundled": {"replicas": 1, "storage": {"keep": False, "className": "fast"}}}},
        {"etcd": {"mode": "External", "external": {"endpoints": ["a:2379"]}}},
        {"etcd": EXTERNAL},
    ],
    "identities": [{}, {"identities": {"enabled": False}}, GIVEN_SECRETS],
    "family": [{}, {"ipFamily": "IPv6"}],
    "rest": [
        {},
        {
            "controlPlane": {"replicas": 1, **PLACEMENT},
            "image": {"registry": "images.example/", "tag": "1", "pullSecrets": ["pull"]},
            "networkPolicy": {"apiFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "metricsFrom": []},
            "serviceMonitor": {"enabled": True},
            "serviceAccount": {"annotations": {"e": "f"}},
        },
    ],
}


def every_combination() -> list[dict[str, Any]]:
    return [
        {name: value for part in chosen for name, value in part.items()}
        for chosen in itertools.product(*MATRIX.values())
    ]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in objects if each["kind"] == kind]


def control_plane(values: dict[str, Any]) -> dict[str, Any]:
    """The container of the control plane."""
    [deployment] = of_kind(documents(rendered(values)), "Deployment")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.fixture(scope="module")
def matrix() -> list[list[dict[str, Any]]]:
    """What the chart makes of every combination of values."""
    with ThreadPoolExecutor(2) as pool:
        return [documents(text) for text in pool.map(rendered, every_combination())]


def test_helm_finds_nothing_to_say_against_it() -> None:
    done = helm("lint", "--strict", str(CHART), "--kube-version", KUBERNETES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", FILES)
def test_what_is_rendered_is_what_was_reviewed(name: str) -> None:
    """After a change that is meant: REWRITE=1, and read the diff."""
    file, seen = GOLDEN / f"{name}.yaml", rendered(FILES[name])
    if os.environ.get("REWRITE"):
        file.write_text(seen)
    assert seen == file.read_text()


def test_an_api_server_takes_every_combination_of_values_within_restricted(matrix: list[list[dict[str, Any]]]) -> None:
    assert len(matrix) == 48
    objects = [each for objects in matrix for each in objects if each["kind"] != "ServiceMonitor"]
    faults = apiserver.faults_of_objects(objects)
    found = {(each["kind"], fault) for each, listed in zip(objects, faults, strict=True) for fault in listed}
    assert found == set()


def test_every_object_is_in_the_releases_namespace_and_is_known_as_its_own(matrix: list[list[dict[str, Any]]]) -> None:
    for each in itertools.chain.from_iterable(matrix):
        metadata = each["metadata"]
        assert each["kind"] == "ClusterRole" or metadata["namespace"] == "remora-system"
        assert metadata["labels"]["app.kubernetes.io/instance"] == "remora"


def test_names_in_one_release_are_distinct_and_what_is_referred_to_is_there(matrix: list[list[dict[str, Any]]]) -> None:
    for objects in matrix:
        names = [(each["kind"], each["metadata"]["name"]) for each in objects]
        assert len(set(names)) == len(names)
        for each in [*of_kind(objects, "Deployment"), *of_kind(objects, "StatefulSet")]:
            spec = each["spec"]["template"]["spec"]
            assert ("ServiceAccount", spec["serviceAccountName"]) in names
            assert spec["automountServiceAccountToken"] is False
            mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
            claimed = {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", ())}
            assert mounted == {volume["name"] for volume in spec.get("volumes", ())} | claimed


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"controlPlane": {"replica": 3}}, "'replica' not allowed"),
        ({"controlplane": {}}, "'controlplane' not allowed"),
        ({"etcd": {"bundled": {"replicas": 2}}}, "/etcd/bundled/replicas"),
        ({"etcd": {"mode": "External"}}, "/etcd/external/endpoints"),
        ({"etcd": {"mode": "External", "external": {"endpoints": ["https://a:2379"]}}}, "/etcd/external/endpoints/0"),
        (
            {"etcd": {"mode": "External", "external": {"endpoints": ["a:1"], "tls": {"clientCertificate": True}}}},
            "/etcd/external/tls/existingSecret",
        ),
        ({"identities": {"certificateLife": "soon"}}, "/identities/certificateLife"),
        ({"networkPolicy": {"meshNamespaces": {"remora.dev/inject": None}}}, "/networkPolicy/meshNamespaces"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_name(values: dict[str, Any], why: str) -> None:
    done = helm("template", "x", str(CHART), "--kube-version", KUBERNETES, "-f", "-", stdin=json.dumps(values))
    assert done.returncode != 0 and why in done.stderr, done.stderr


def test_every_value_has_a_schema_and_every_schema_a_value() -> None:
    def paths(schema: dict[str, Any], values: Any, path: str = "") -> tuple[set[str], set[str]]:
        known = set(schema.get("properties", {})) - {"global"}
        there = set(values) if known else set()
        said, given = {f"{path}.{name}" for name in known}, {f"{path}.{name}" for name in there}
        for name in known & there:
            more_said, more_given = paths(schema["properties"][name], values[name], f"{path}.{name}")
            said, given = said | more_said, given | more_given
        return said, given

    schema = json.loads((CHART / "values.schema.json").read_text())
    [values] = documents((CHART / "values.yaml").read_text())
    said, given = paths(schema, values)
    assert {path for path in said - given if ".resources." not in path} == set()
    assert given - said == set()


def test_an_older_kubernetes_is_refused() -> None:
    done = helm("template", "x", str(CHART), "--kube-version", "1.28.0")
    assert done.returncode != 0 and "1.29" in done.stderr


def test_the_roles_for_people_name_every_kind() -> None:
    ours = {kind.plural for kind in kinds.KINDS if kind.api_version == kinds.REMORA}
    roles = of_kind(documents(rendered(GIVEN_SECRETS)), "ClusterRole")
    assert [set(role["rules"][0]["resources"]) for role in roles] == [ours, ours]


def test_the_authority_that_the_chart_makes_is_one_that_signs() -> None:
    secrets = {each["metadata"]["name"]: each for each in of_kind(documents(rendered({})), "Secret")}
    made = secrets["remora-authority"]
    chain, key = (base64.b64decode(made["data"][name]) for name in ("tls.crt", "tls.key"))
    assert authority.load(chain, key).root
    assert made["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert len(base64.b64decode(secrets["remora-operator"]["data"]["secret"])) >= 32


def test_the_operators_of_one_etcd_with_tls_are_told_how_to_reach_it() -> None:
    args = control_plane(FILES["external"])["args"]
    assert (
        "--store=etcd://etcd-0.example:2379,etcd-1.example:2379?ca=/etc/remora/etcd/ca.crt"
        "&cert=/etc/remora/etcd/tls.crt&key=/etc/remora/etcd/tls.key&server-name=etcd.example"
    ) in args


def given(container: dict[str, Any], replaced: dict[str, str]) -> list[str]:
    """A container's arguments, with values that this machine has."""
    names = (argument.partition("=")[::2] for argument in container["args"])
    return [f"{name}={replaced.get(name, value)}" if value else name for name, value in names]


def test_control_plane_and_etcd_start_by_the_charts_own_arguments(tmp_path: Path) -> None:
    """Those of the containers, with this machine's addresses, and the authority that the chart made."""
    objects = documents(rendered({"etcd": {"bundled": {"replicas": 1}}}))
    [secret] = [each for each in objects if each["metadata"]["name"] == "remora-authority"]
    for name, data in secret["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    containers = {
        each["kind"]: each["spec"]["template"]["spec"]["containers"][0]
        for each in [*of_kind(objects, "Deployment"), *of_kind(objects, "StatefulSet")]
    }
    xds, http, client, peer, metrics = free_ports(5)
    at = "http://127.0.0.1:{}".format
    etcd_words = given(
        containers["StatefulSet"],
        {
            "--name": "m0",
            "--data-dir": str(tmp_path / "etcd"),
            "--listen-client-urls": at(client),
            "--advertise-client-urls": at(client),
            "--listen-peer-urls": at(peer),
            "--initial-advertise-peer-urls": at(peer),
            "--initial-cluster": f"m0={at(peer)}",
            "--listen-metrics-urls": at(metrics),
        },
    )
    words = given(
        containers["Deployment"],
        {
            "--listen": f"127.0.0.1:{xds}",
            "--http": f"127.0.0.1:{http}",
            "--advertise": f"127.0.0.1:{xds}",
            "--store": f"etcd://127.0.0.1:{client}",
            "--ca-cert": str(tmp_path / "tls.crt"),
            "--ca-key": str(tmp_path / "tls.key"),
        },
    )
    env = environment(XDG_STATE_HOME=str(tmp_path / "state"), REMORA_OPERATOR_SECRET="operators")
    start = [sys.executable, "-m", "remora"]
    asked = [*start, "cert", "show", "--server", f"127.0.0.1:{xds}"]

    def is_there(url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def answers() -> bool:
        return subprocess.run(asked, cwd=ROOT, env=env, capture_output=True, check=False).returncode == 0

    with (tmp_path / "etcd.log").open("w") as log, subprocess.Popen([need("etcd"), *etcd_words], stderr=log) as etcd:
        try:
            eventually(lambda: is_there(f"{at(metrics)}/health"), timeout_s=60)
            with subprocess.Popen([*start, *words], cwd=ROOT, env=env) as plane:
                try:
                    eventually(lambda: is_there(f"{at(http)}/healthz"), timeout_s=60)
                    eventually(answers, timeout_s=60)
                finally:
                    plane.terminate()
            assert plane.returncode == 0
        finally:
            etcd.kill()
