"""The suite notices: every mutant of the library is caught by a test. And without a mutant the same tests pass in the same place."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.apps.transactions.mutants import MUTANTS, Mutant
from tests.tools import ROOT

LIBRARY: Final = Path("apps/transactions")
TIMEOUT_S: Final = 240.0


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and its tests, to be changed."""
    place = tmp_path_factory.mktemp("mutants")
    ignored = shutil.ignore_patterns("__pycache__", "bookstore", "bookstore_*")
    shutil.copytree(ROOT / "apps", place / "apps", ignore=ignored)
    shutil.copytree(ROOT / "proto", place / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "tests" / "apps").mkdir(parents=True)
    for each in (ROOT / "tests").glob("*.py"):
        shutil.copy(each, place / "tests")
    shutil.copy(ROOT / "tests" / "apps" / "__init__.py", place / "tests" / "apps")
    shutil.copytree(ROOT / "tests/apps/transactions", place / "tests/apps/transactions", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", place)
    return place


def run(place: Path, tests: str) -> subprocess.CompletedProcess[str]:
    path, *options = shlex.split(tests)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, f"tests/apps/transactions/{path}", *options],
        cwd=place, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name for each in MUTANTS])
def test_a_mutant_says_what_it_changes(mutant: Mutant) -> None:
    assert (ROOT / LIBRARY / mutant.path).read_text().count(mutant.old) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({each.tests for each in MUTANTS}))
def test_without_a_mutant_the_tests_pass(copy: Path, tests: str) -> None:
    done = run(copy, tests)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name for each in MUTANTS])
def test_a_mutant_is_caught(copy: Path, mutant: Mutant) -> None:
    path = copy / LIBRARY / mutant.path
    original = path.read_text()
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        done = run(copy, mutant.tests)
    except subprocess.TimeoutExpired:
        return  # it hangs, and is noticed
    finally:
        path.write_text(original)
    assert done.returncode == 1, f"nobody noticed: {done.stdout[-2000:]}"
