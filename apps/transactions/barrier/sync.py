"""The barrier as an interceptor of a synchronous gRPC server."""

from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from typing import Any, NoReturn, cast

import grpc
from sqlalchemy import Connection, Engine

from apps.transactions.barrier.core import Answer, Refused
from apps.transactions.barrier.edge import ANSWERS, KNOWN, Aborted, Held, end, ending, refusal
from apps.transactions.barrier.schema import create_tables
from apps.transactions.barrier.session import Session
from apps.transactions.context import BranchCall, branch_call
from apps.transactions.seam import crossing

_current: ContextVar["Local"] = ContextVar("transactions_local")


class Local:
    """The local transaction of the call that runs; commits when the handler returns, rolls back when it fails."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def call(self) -> BranchCall | None:
        """The branch that this call belongs to; None if it belongs to no transaction."""
        return self._session.call

    @property
    def connection(self) -> Connection:
        """In a transaction; everything that the handler writes goes through it."""
        return self._session.connection


def local() -> Local:
    """The local transaction of the call that runs. Raises LookupError outside a `Barrier`."""
    return _current.get()


class Barrier(grpc.ServerInterceptor):
    """Guards every unary call that names a branch; gives every other a plain local transaction, if it uses it."""

    def __init__(self, engine: Engine) -> None:
        create_tables(engine)
        self._engine = engine

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behavior = cast(Callable[[Any, Any], Any], handler.unary_unary)
        serialize = cast(Callable[[Any], bytes], handler.response_serializer or bytes)
        metadata = tuple(handler_call_details.invocation_metadata or ())

        def guarded(request: Any, context: grpc.ServicerContext) -> bytes:
            try:
                call = branch_call(metadata)
                with closing(Session(self._engine, call)) as session:
                    answer = self._answer(session, lambda held: serialize(behavior(request, held)), context)
            except KNOWN as error:
                _end_with(context, ending(error))
            if call is not None:
                ANSWERS.labels(call.op, answer.outcome, answer.is_repeat).inc()
            with crossing("send", "reply"):
                stop = end(answer)
                if stop is not None:
                    _end_with(context, stop)
            return answer.reply

        return grpc.unary_unary_rpc_method_handler(guarded, handler.request_deserializer, bytes)

    def _answer(self, session: Session, work: Callable[[Any], bytes], context: grpc.ServicerContext) -> Answer:
        answer = session.enter()
        if answer is None:
            held = _HeldSync(context)
            token = _current.set(Local(session))
            try:
                reply = work(held)
                held.raise_for_code()
                answer = session.leave(reply)
                held.give_trailing_metadata()
            except Aborted as aborted:
                if aborted.code is not grpc.StatusCode.ABORTED or session.call is None:
                    raise
                answer = session.refuse(refusal(aborted))
            except Refused as refused:
                answer = session.refuse(refused)
            finally:
                _current.reset(token)
        session.commit()
        return answer


class _HeldSync(Held):
    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise self.aborted(code, details, ())

    def abort_with_status(self, status: Any) -> NoReturn:
        raise self.aborted(status.code, status.details, tuple(status.trailing_metadata or ()))


def _end_with(context: grpc.ServicerContext, stop: Aborted) -> NoReturn:
    if stop.trailing:
        context.set_trailing_metadata(stop.trailing)
    context.abort(stop.code, stop.message)
    raise AssertionError("abort does not return")
