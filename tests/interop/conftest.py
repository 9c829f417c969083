"""What runs for the interop tests, started when it is first asked for."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.interop import matrix
from tests.interop.matrix import Programs


class Ways:
    """What runs, started when it is first asked for."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    @cache  # noqa: B019  one object, which lives as long as the module's tests
    def of(self, way: str) -> Programs:
        """Servers and sidecars of a way."""
        folder = self._folder / way
        folder.mkdir(exist_ok=True)  # the first may have been skipped for want of a program
        return self._stack.enter_context(matrix.running(way, folder))


@pytest.fixture(scope="package")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    with ExitStack() as stack:
        yield Ways(stack, tmp_path_factory.mktemp("interop"))
