"""The suite notices: every mutant of the library is caught by a test. And without a mutant the same tests pass in the same place."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

from tests.apps.transactions.mutants import MUTANTS, Mutant
from tests.tools import ROOT

LIBRARY: Final = Path("apps/transactions")
TIMEOUT_S: Final = 120.0


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


def run(place: Path, tests: str) -> tuple[int | None, str]:
    """Exit code, None if it hangs, and what was said. Leaves no process behind."""
    path, *options = shlex.split(tests)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    temporary = tempfile.mkdtemp(prefix="mutant-")
    Path(temporary).chmod(0o755)  # PostgreSQL runs as somebody else, if we are root
    environment = {
        **os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": temporary,
    }  # fmt: skip
    process = subprocess.Popen(
        [*command, f"tests/apps/transactions/{path}", *options],
        cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None, ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)
    return process.returncode, said


@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name.replace(" ", "_") for each in MUTANTS])
def test_a_mutant_says_what_it_changes(mutant: Mutant) -> None:
    assert (ROOT / LIBRARY / mutant.path).read_text().count(mutant.old) == 1


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({each.tests for each in MUTANTS}))
def test_without_a_mutant_the_tests_pass(copy: Path, tests: str) -> None:
    code, said = run(copy, tests)
    assert code == 0, said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name.replace(" ", "_") for each in MUTANTS])
def test_a_mutant_is_caught(copy: Path, mutant: Mutant) -> None:
    path = copy / LIBRARY / mutant.path
    original = path.read_text()
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        code, said = run(copy, mutant.tests)
    finally:
        path.write_text(original)
    assert code in (1, None), f"nobody noticed: {said[-2000:]}"
