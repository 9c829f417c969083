"""How calls are refused."""

from typing import Any

import grpc
import pytest


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """The status of a call that must fail, and what is said."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""
