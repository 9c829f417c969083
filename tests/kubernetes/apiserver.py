"""What a Kubernetes API server would say: its own code, built from tests/kubernetes/go, and Helm."""

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ruamel.yaml import YAML

from tests.tools import ROOT, need

CHART: Final = ROOT / "deploy" / "helm" / "remora"
CRDS: Final = CHART / "crds"
KUBERNETES: Final = "1.34.0"
Object = Mapping[str, Any]


def documents(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML text; empty documents are left out."""
    return [each for each in YAML(typ="safe", pure=True).load_all(text) if each]


def faults_of_resources(resources: Sequence[Object]) -> list[list[str]]:
    """For each resource of the mesh what the API server has against it, by the chart's definitions."""
    return _ask("-resources", resources, [str(each) for each in sorted(CRDS.glob("*.yaml"))])


def faults_of_objects(objects: Sequence[Object]) -> list[list[str]]:
    """For each object of Kubernetes' own kinds what strict validation and Pod Security `restricted` have against it."""
    return _ask("-objects", objects, [])


def _ask(option: str, objects: Sequence[Object], more: Iterable[str]) -> list[list[str]]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(list(objects), file)
        file.flush()
        done = subprocess.run(
            [need("crdcheck"), option, file.name, *more], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    answer: list[list[str]] = json.loads(done.stdout)
    return answer


def helm(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """A Helm command, to its end."""
    return subprocess.run(
        [need("helm"), *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def rendered(values: Mapping[str, Any], *more: str) -> str:
    """What the chart makes of values. Fails with Helm's words."""
    done = helm(
        "template", "remora", str(CHART), "-n", "remora-system", "--kube-version", KUBERNETES, "-f", "-", *more,
        stdin=json.dumps(values),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
