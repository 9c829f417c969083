"""Control planes that run.

Tests with grpc.aio share one event loop: its queue of completions belongs to the process, and is disturbed when a loop goes away.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.control_plane.plane import Plane, plane_on


@pytest_asyncio.fixture(loop_scope="session")
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    """A control plane with an empty embedded store."""
    async with plane_on(tmp_path / "store") as running:
        yield running
