"""Waiting for a condition: the only place in the tests that sleeps."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, overload

T = TypeVar("T")
STEP_S: Final = 0.02


def eventually(condition: Callable[[], T], *, timeout_s: float = 30.0, message: str = "") -> T:
    """Poll until the condition is true; its last value, or AssertionError when the time is over."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(message or f"not true within {timeout_s:g} s, last value {value!r}")
        time.sleep(STEP_S)


@overload
async def eventually_async(
    condition: Callable[[], Awaitable[T]], *, timeout_s: float = 30.0, message: str = ""
) -> T: ...
@overload
async def eventually_async(condition: Callable[[], T], *, timeout_s: float = 30.0, message: str = "") -> T: ...
async def eventually_async(
    condition: Callable[[], Awaitable[T] | T], *, timeout_s: float = 30.0, message: str = ""
) -> T:
    """The same inside an event loop; the condition may be a coroutine function."""
    end = time.monotonic() + timeout_s
    while True:
        result = condition()
        value = await result if isinstance(result, Awaitable) else result
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(message or f"not true within {timeout_s:g} s, last value {value!r}")
        await asyncio.sleep(STEP_S)
