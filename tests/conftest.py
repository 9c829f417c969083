"""What holds for all tests: a slow machine is no fault of the code that is tested."""

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from tests.exiting import end_within

settings.register_profile("remora", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("remora")

TESTS: Final = Path(__file__).parent
LONG: Final = ("end_to_end", "faults", "docs", "remora", "kubernetes", "apps")
"""Rooms whose files take long: they start first, so that no worker is left with one of them when the others are done."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a room the order stays."""

    def rank(item: pytest.Item) -> int:
        room = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        return LONG.index(room) if room in LONG else len(LONG)

    items.sort(key=rank)


def pytest_unconfigure() -> None:
    """All is said: what is left over may not keep the run from ending."""
    end_within()
