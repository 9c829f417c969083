"""Where refusals become gRPC statuses, and statuses become refusals again: code, text, and details for programs.

The details are those of the error model (google.rpc.Status): an ErrorInfo with the reason, a BadRequest with the fields.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeAlias, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

from apps.bookstore.database import DatabaseAway
from apps.bookstore.refusals import DOMAIN, Reason, Refusal

CODES: Final = {
    Reason.BAD_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.SOLD_OUT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NO_SUCH_BOOK: grpc.StatusCode.NOT_FOUND,
    Reason.NO_SUCH_ORDER: grpc.StatusCode.NOT_FOUND,
    Reason.NO_SUCH_TRANSFER: grpc.StatusCode.NOT_FOUND,
    Reason.TOO_LITTLE_MONEY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NOTHING_HELD: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TAKEN_BACK: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.ORDER_DIFFERS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.CALLEE_AWAY: grpc.StatusCode.UNAVAILABLE,
    Reason.CALLEE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.DATABASE_AWAY: grpc.StatusCode.UNAVAILABLE,
    Reason.BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
MAX_CALLS: Final = 256
"""Of one instance at the same time; more are refused, not queued."""
_DETAILS: Final = "grpc-status-details-bin"

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Call = Callable[[Any, Context], Awaitable[Any]]


class Edge(grpc.aio.ServerInterceptor):
    """The services raise; this answers. It also bounds how many of a service's calls run at the same time (not its health checks)."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"
        self._calls = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if not handler_call_details.method.startswith(self._prefix) or handler is None:
            return handler
        call = cast(Call, handler.unary_unary)

        async def explained(request: Any, context: Context) -> Any:
            if self._calls >= MAX_CALLS:
                await refuse(context, Refusal(Reason.BUSY, f"{MAX_CALLS} calls are in hand; no more are taken now"))
            self._calls += 1
            try:
                return await call(request, context)
            except Refusal as refusal:
                await refuse(context, refusal)
            except DatabaseAway as error:
                await refuse(context, Refusal(Reason.DATABASE_AWAY, str(error)))
            finally:
                self._calls -= 1

        return grpc.unary_unary_rpc_method_handler(
            cast(Any, explained), handler.request_deserializer, handler.response_serializer
        )


async def refuse(context: Context, refusal: Refusal) -> NoReturn:
    """Answer a call with a refusal."""
    code = CODES[refusal.reason]
    status = status_pb2.Status(code=code.value[0], message=refusal.text)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN))
    if refusal.violations:
        bad = error_details_pb2.BadRequest()
        for field, description in refusal.violations:
            bad.field_violations.add(field=field, description=description)
        status.details.add().Pack(bad)
    await context.abort(code, refusal.text, ((_DETAILS, status.SerializeToString()),))
    raise AssertionError("abort does not return")


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal | None:
    """The refusal behind a failed call; None if it is not the bookstore's own but the network's, or the mesh's."""
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except ValueError:  # what protobuf raises for bytes that are no message
            return None
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            if detail.Unpack(info) and info.domain == DOMAIN and info.reason in Reason.__members__:
                return Refusal(Reason(info.reason), error.details() or "")
    return None
