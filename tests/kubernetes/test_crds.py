"""CustomResourceDefinitions: made from proto/, valid to an API server, and of one mind with the control plane's own check."""

import importlib.resources
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

from control_plane.kubernetes import crds, schema
from control_plane.resources import dump, kinds, load
from control_plane.resources.errors import InvalidResource
from proto.mesh.v1 import policy_pb2
from tests.control_plane import scenario
from tests.kubernetes import apiserver
from tests.kubernetes.apiserver import CRDS, documents
from tests.tools import ROOT, need

REFUSED: Final = scenario.read(Path(__file__).with_name("refused.txt"))
YAML_BLOCK: Final = re.compile(r"^```yaml\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `make crds` writes."""
    out = tmp_path_factory.mktemp("crds") / "mesh.binpb"
    data = ROOT / ".venv" / "data"
    files = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "proto" / "mesh" / "v1").glob("*.proto"))]
    given = [f"-I{ROOT}", f"-I{importlib.resources.files('grpc_tools') / '_proto'}", f"-I{data}"]
    assert (
        protoc.main(["", *given, "--include_imports", "--include_source_info", f"--descriptor_set_out={out}", *files])
        == 0
    )
    return crds.definitions(FileDescriptorSet.FromString(out.read_bytes()))


def test_the_charts_definitions_are_those_that_the_schema_leads_to(made: dict[str, str]) -> None:
    there = {file.name: file.read_text() for file in CRDS.iterdir()}
    assert there == made, "`make crds` writes them anew"


def test_every_kind_of_ours_has_a_definition_and_the_gateway_apis_have_none() -> None:
    named = {documents(file.read_text())[0]["spec"]["names"]["kind"] for file in CRDS.iterdir()}
    assert named == {kind.name for kind in kinds.KINDS} - {"GRPCRoute"}


def test_an_api_server_takes_them() -> None:
    files = [str(file) for file in sorted(CRDS.iterdir())]
    done = subprocess.run([need("crdcheck"), *files], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_kubectl_would_read_as_true_or_false_is_quoted() -> None:
    text = "".join(file.read_text() for file in CRDS.iterdir())
    assert re.search(r'^ +- "Off"$', text, re.M) and re.search(r'^ +"on":$', text, re.M)
    assert not re.search(r"^ +(- Off|on:)$", text, re.M)


@pytest.mark.parametrize("kind", [kind.name for kind in kinds.KINDS if kind.api_version == kinds.REMORA])
def test_status_is_a_subresource_whose_conditions_are_shown(kind: str) -> None:
    [definition] = [
        found
        for file in CRDS.iterdir()
        for found in documents(file.read_text())
        if found["spec"]["names"]["kind"] == kind
    ]
    [version] = definition["spec"]["versions"]
    assert version["subresources"] == {"status": {}}
    assert {"Accepted", "Programmed", "Age"} < {column["name"] for column in version["additionalPrinterColumns"]}
    conditions = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert version["schema"]["openAPIV3Schema"]["properties"]["spec"]["description"]


def _samples() -> list[tuple[str, str]]:
    """Every resource that the pages and the bookstore show, and where."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for number, block in enumerate(YAML_BLOCK.findall(page.read_text())):
            if "apiVersion: remora.dev/v1" in block:
                found.append((f"{page.name}[{number}]", block))
    found += [(file.name, file.read_text()) for file in sorted((ROOT / "apps" / "bookstore" / "mesh").glob("*.yaml"))]
    return found


def _ours(text: str, name: str) -> list[Any]:
    loaded = [dump.to_dict(resource) for resource in load.load(text, name)]
    return [resource for resource in loaded if resource["apiVersion"] == kinds.REMORA]


def test_what_the_pages_show_is_valid_to_an_api_server() -> None:
    named = [(name, resource) for name, text in _samples() for resource in _ours(text, name)]
    assert len(named) > 10
    faults = apiserver.faults_of_resources([resource for _, resource in named])
    assert [(name, each) for (name, _), each in zip(named, faults, strict=True) if each] == []


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.title)
def test_what_the_control_plane_refuses_is_refused_by_the_api_server_with_these_words(case: Any) -> None:
    with pytest.raises(InvalidResource):
        load.load(case.given, "x.yaml")
    [resource] = documents(case.given)
    resource.setdefault("metadata", {}).setdefault("namespace", "default")
    case.play(lambda _: "\n".join(sorted(apiserver.faults_of_resources([resource])[0])))


def test_what_most_rules_allow_is_taken_whole() -> None:
    text = """\
apiVersion: remora.dev/v1
kind: LoadBalancingPolicy
metadata: {name: a}
spec:
  targetRefs: [{name: orders}]
  algorithm: RingHash
  hashOn: [{cookie: session, cookieTtl: 0s}, {source: RemoteAddress, terminal: true}]
  ringSize: 2048
  localityWeights: {eu/west: 3}
"""
    [faults] = apiserver.faults_of_resources(_ours(text, "x.yaml"))
    assert faults == []


def test_a_rule_that_has_no_place_in_a_schema_is_an_error_not_a_gap() -> None:
    from envoy.config.core.v3 import http_uri_pb2

    with pytest.raises(NotImplementedError, match=r"duration\.lt has no place in a schema"):
        schema.Writer({}, {}).message(http_uri_pb2.HttpUri.DESCRIPTOR)


def test_bounds_of_durations_are_written_as_users_write_them() -> None:
    rules = schema.rules_of(policy_pb2.RateLimitPolicySpec.DESCRIPTOR.fields_by_name["interval"]).duration
    assert (schema.shown(rules.gte), schema.shown(rules.lte)) == ("50ms", "24h")


def test_definitions_are_small_enough_for_an_annotation_of_kubectl() -> None:
    for file in CRDS.iterdir():
        assert len(json.dumps(documents(file.read_text())[0])) < 262_144, file.name
