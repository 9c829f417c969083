"""What every call passes on its way in and out, so that no method has to think of it.

In: the bytes are a message of the method's type, hold no field that this release does not know, keep the constraints of the schema, and
stay within the limits. Out: what a method raises becomes a status; what it should not have raised becomes INTERNAL and a traceback in the
log, never UNKNOWN. Services that are not ours (health, reflection, ADS) get the first and the last of it.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError, Message
from prometheus_client import Counter

from control_plane.api.budget import WriteBudget
from control_plane.api.refused import Refused
from control_plane.registry.registry import InstanceNotFound, TooBusy
from control_plane.registry.state import Unreadable
from control_plane.resources import rules, unknown
from control_plane.store.contract import LeaseNotFound, OverLimit, StoreError, StoreFull

log = logging.getLogger("remora.api")

MAX_WRITES_PER_S: Final = 500
MAX_WRITES_AT_ONCE: Final = 2000
"""As many as a fleet that starts at once may need."""
MAX_WAITING: Final = 2000
"""Calls at a time that wait for something: Watch, WaitProgrammed, SetHealth."""
MAX_DETAILS: Final = 4096
"""Characters of a status message: it travels in a header, which clients take up to 8 KiB."""

_OURS: Final = "/remora.mesh.v1."
_WRITES: Final = frozenset(
    _OURS + name
    for name in [
        "Resources/Apply",
        "Resources/Delete",
        "Resources/Rollback",
        "Registry/Register",
        "Registry/SetHealth",
        "Registry/Drain",
        "Registry/Release",
        "Registry/Deregister",
    ]
)
_WAIT: Final = frozenset(
    _OURS + name for name in ["Resources/Watch", "Resources/WaitProgrammed", "Registry/SetHealth", "Registry/Drain"]
)
_CHECKS_ITSELF: Final = frozenset(_OURS + name for name in ["Resources/Apply", "Resources/Diff"])
"""Methods that check the schema's constraints themselves, since they can say better what is concerned."""
_STATUSES: Final[tuple[tuple[type[Exception], grpc.StatusCode, str], ...]] = (
    (LeaseNotFound, grpc.StatusCode.NOT_FOUND, "; register again"),
    (InstanceNotFound, grpc.StatusCode.NOT_FOUND, ""),
    (TooBusy, grpc.StatusCode.UNAVAILABLE, ""),
    (OverLimit, grpc.StatusCode.INVALID_ARGUMENT, ""),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    (Unreadable, grpc.StatusCode.FAILED_PRECONDITION, "; a later release wrote it, or something else did"),
    (StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
    (StoreError, grpc.StatusCode.UNAVAILABLE, ""),
)
"""What methods let through, and what it means to a caller; the first that fits."""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class _Method:
    """A method behind the entrance."""

    name: str
    parse: Callable[[bytes], Any]
    handler: Any


class Entrance(grpc.aio.ServerInterceptor):
    """One for a server; `requests` counts its calls."""

    def __init__(self) -> None:
        self.requests = Counter(
            "remora_control_plane_requests", "Calls that have ended.", ["method", "code"], registry=None
        )
        self._writes = WriteBudget(MAX_WRITES_PER_S, MAX_WRITES_AT_ONCE)
        self._waiting = 0

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = _Method(handler_call_details.method, handler.request_deserializer or _as_it_is, handler)
        kinds = {"request_deserializer": _as_it_is, "response_serializer": handler.response_serializer}
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._one_one(method), **kinds)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._one_many(method), **kinds)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._many_many(method), **kinds)
        return handler  # nothing that is served here takes many and answers once

    # -- by the number of messages in and out -----------------------------------------------------------

    def _one_one(self, method: _Method) -> Callable[[bytes, Context], Awaitable[Any]]:
        async def answer(data: bytes, context: Context) -> Any:
            async with self._passing(method, context):
                return await method.handler.unary_unary(self._admitted(method, data), context)

        return answer

    def _one_many(self, method: _Method) -> Callable[[bytes, Context], AsyncIterator[Any]]:
        async def answer(data: bytes, context: Context) -> AsyncIterator[Any]:
            async with self._passing(method, context):
                async for response in method.handler.unary_stream(self._admitted(method, data), context):
                    yield response

        return answer

    def _many_many(self, method: _Method) -> Callable[[Any, Context], Any]:
        async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for data in requests:
                request = _parsed(method, data)
                del data
                yield request
                del request  # a thousand streams that wait for their next request do not hold the last one

        async def write(requests: AsyncIterator[bytes], context: Context) -> None:
            async with self._passing(method, context):
                await method.handler.stream_stream(parsed(requests), context)

        async def generate(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
            async with self._passing(method, context):
                async for response in method.handler.stream_stream(parsed(requests), context):
                    yield response

        return generate if inspect.isasyncgenfunction(method.handler.stream_stream) else write

    # -- in and out -------------------------------------------------------------------------------------

    def _admitted(self, method: _Method, data: bytes) -> Any:
        """The request. Raises Refused."""
        request = _parsed(method, data)
        if not method.name.startswith(_OURS):
            return request
        found = list(unknown.faults(request))
        if method.name not in _CHECKS_ITSELF:
            found += rules.faults(request)
        if found:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "\n".join(map(str, found)))
        if method.name in _WRITES:
            wait_s = self._writes.take(monotonic())
            if wait_s:
                text = f"more than {self._writes.per_second:g} writes per second; try again in {wait_s:.3f} s"
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        return request

    @asynccontextmanager
    async def _passing(self, method: _Method, context: Context) -> AsyncIterator[None]:
        """Around a call: counts it, and gives what it raises a status."""
        waits = method.name in _WAIT
        code = grpc.StatusCode.OK
        try:
            if waits and self._waiting >= MAX_WAITING:
                text = f"{self._waiting} calls are waiting already; at most {MAX_WAITING} may"
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            self._waiting += waits
            try:
                yield
            finally:
                self._waiting -= waits
        except grpc.aio.AbortError:
            code = context.code()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.BaseError:  # gRPC's own, while the server stops under a call that reads: nobody hears an answer
            code = grpc.StatusCode.CANCELLED
            raise asyncio.CancelledError from None
        except Exception as error:  # noqa: BLE001 - the edge: whatever it is, the caller gets a status that says so
            code, text = _status(method, error)
            await context.abort(code, text)
        finally:
            self.requests.labels(method.name.removeprefix("/"), code.name).inc()


def _parsed(method: _Method, data: bytes) -> Any:
    try:
        return method.parse(data)
    except DecodeError:
        text = f"{len(data)} bytes that are no request of {method.name.removeprefix('/')}"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text) from None


def _status(method: _Method, error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, Refused):
        return error.code, _short(error.text)
    for kind, code, way_out in _STATUSES:
        if isinstance(error, kind):
            return code, _short(f"{error}{way_out}")
    log.error("%s failed", method.name, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"{method.name.removeprefix('/')} failed; the control plane's log says why"


def _short(text: str) -> str:
    """Whole lines, as many as fit."""
    if len(text) <= MAX_DETAILS:
        return text
    lines = text[:MAX_DETAILS].split("\n")
    kept = lines[:-1] or [lines[0]]
    left = text.count("\n") + 1 - len(kept)
    return "\n".join(kept) + (f"\nand {left} more" if left else "...")


def _as_it_is(message: Message | bytes) -> Any:
    return message
