"""Meshes: one of a test's own, and one that the tests of a file share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh import Mesh, running


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    """For tests that break things."""
    with running(tmp_path) as each:
        yield each


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """For tests that leave the control plane as they found it."""
    with running(tmp_path_factory.mktemp("mesh")) as each:
        yield each


@pytest.fixture
def guests(shared: Mesh) -> Iterator[Mesh]:
    """The shared mesh; what a test starts ends with it."""
    with shared.guests():
        yield shared
