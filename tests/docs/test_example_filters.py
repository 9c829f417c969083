"""The examples of docs/filters.md, and their tests, are right as they stand there."""

import os
import subprocess
import sys

from tests.tools import ROOT


def test_the_tests_of_the_example_filters_pass_without_a_proxy() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".", "."]
    done = subprocess.run(
        words,
        cwd=ROOT / "docs" / "examples" / "filters",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
