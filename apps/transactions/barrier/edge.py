"""What both interceptors share: a branch's answer as a gRPC status, a context that holds an abort back, and the counter."""

from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import Counter
from sqlalchemy.exc import DBAPIError, TimeoutError

from apps.transactions.barrier.core import Answer, Contradiction, Outcome, Refused, ReplyTooLarge
from apps.transactions.context import DOMAIN, BadContext, VersionSkew

DETAILS_KEY: Final = "grpc-status-details-bin"

ANSWERS: Final = Counter(
    "transactions_barrier_answers",
    "Operations on branches that this participant answered.",
    ["op", "outcome", "repeat"],
)


class Aborted(Exception):
    """The handler ends its call with a status that is not OK."""

    def __init__(self, code: grpc.StatusCode, message: str, trailing: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailing = trailing


class Held:
    """A handler's context, whose `abort` does not answer yet: first the branch's record is written, then the caller is told."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._code = grpc.StatusCode.OK
        self._message = ""
        self._trailing: tuple[tuple[str, str | bytes], ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._message = details

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self._trailing = tuple(trailing_metadata)

    def give_trailing_metadata(self) -> None:
        """The handler answered: pass on what it wants to travel behind the reply."""
        if self._trailing:
            self._context.set_trailing_metadata(self._trailing)

    def raise_for_code(self) -> None:
        """Raises Aborted if the handler set a code and returned."""
        if self._code is not grpc.StatusCode.OK:
            raise Aborted(self._code, self._message, self._trailing)

    def aborted(self, code: grpc.StatusCode, details: str, trailing: tuple[tuple[str, str | bytes], ...]) -> Aborted:
        return Aborted(code, details, tuple(trailing) or self._trailing)


def refusal(aborted: Aborted) -> Refused:
    """The refusal that an ABORTED of the handler is, with the handler's details."""
    refused = Refused(aborted.message)
    for key, value in aborted.trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            refused.status.ParseFromString(value)
    refused.status.code = grpc.StatusCode.ABORTED.value[0]
    return refused


def end(answer: Answer) -> Aborted | None:
    """How an answer ends the call; None: with OK and its reply."""
    if answer.outcome not in (Outcome.REFUSED, Outcome.BLOCKED):
        return None
    status = status_pb2.Status.FromString(answer.reply)
    return Aborted(grpc.StatusCode.ABORTED, status.message, ((DETAILS_KEY, answer.reply),))


Known = Aborted | Refused | Contradiction | BadContext | ReplyTooLarge | DBAPIError | TimeoutError
KNOWN: Final = (Aborted, Refused, Contradiction, BadContext, ReplyTooLarge, DBAPIError, TimeoutError)
"""What `ending` has a status for; anything else is the handler's own affair, and rolls back all the same."""


def ending(error: Known) -> Aborted:
    """The status for what went wrong. Never ABORTED but for the business's own refusal."""
    match error:
        case Aborted():
            return error
        case Refused():
            return Aborted(
                grpc.StatusCode.ABORTED, error.status.message, ((DETAILS_KEY, error.status.SerializeToString()),)
            )
        case Contradiction():
            return _explained(grpc.StatusCode.DATA_LOSS, error.reason, str(error))
        case VersionSkew():
            return _explained(grpc.StatusCode.UNIMPLEMENTED, "VERSION_SKEW", str(error))
        case BadContext():
            return _explained(grpc.StatusCode.INVALID_ARGUMENT, "BAD_CONTEXT", str(error))
        case ReplyTooLarge():
            return _explained(grpc.StatusCode.RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE", str(error))
        case DBAPIError():
            return _explained(grpc.StatusCode.UNAVAILABLE, "DATABASE", f"ask again: {error.orig}")
        case TimeoutError():
            return _explained(grpc.StatusCode.UNAVAILABLE, "DATABASE", f"ask again: {error}")


def _explained(code: grpc.StatusCode, reason: str, message: str) -> Aborted:
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    return Aborted(code, message, ((DETAILS_KEY, status.SerializeToString()),))
