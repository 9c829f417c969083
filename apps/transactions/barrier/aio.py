"""The barrier as an interceptor of an asyncio gRPC server: handlers are coroutines, their SQL runs in threads.

No more local transactions are open than there are threads: whoever waits for a lock sits in a thread, and whoever holds that lock must
still find one to finish. A call that belongs to no transaction and does not use its local one waits for nobody, so health is answered however
busy the database is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar, cast

import grpc
from sqlalchemy import Connection, Engine

from apps.transactions.barrier.core import Answer, Refused
from apps.transactions.barrier.edge import ANSWERS, KNOWN, Aborted, Held, end, ending, refusal
from apps.transactions.barrier.schema import create_tables
from apps.transactions.barrier.session import Session
from apps.transactions.context import BranchCall, branch_call
from apps.transactions.seam import crossing

DEFAULT_THREADS: Final = 4
P = ParamSpec("P")
T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

_current: ContextVar["AioLocal"] = ContextVar("transactions_aio_local")


class AioLocal:
    """The local transaction of the call that runs; commits when the handler returns, rolls back when it fails."""

    def __init__(self, session: Session, threads: ThreadPoolExecutor, slots: asyncio.Semaphore) -> None:
        self._session = session
        self._threads = threads
        self._slots = slots
        self._has_slot = False

    @property
    def call(self) -> BranchCall | None:
        """The branch that this call belongs to; None if it belongs to no transaction."""
        return self._session.call

    async def run(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(connection, ...)` in a thread, within the transaction. One at a time."""
        await self._begin()
        return await self._in_thread(lambda: work(self._session.connection, *args, **kwargs))

    async def _begin(self) -> None:
        if not self._has_slot:
            await self._slots.acquire()
            self._has_slot = True

    async def _commit(self) -> None:
        if self._has_slot:
            await self._in_thread(self._session.commit)

    async def _close(self) -> None:
        if self._has_slot:
            try:
                await self._in_thread(self._session.close)
            finally:
                self._slots.release()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:  # however often: a thread cannot be stopped, and until it ends
                cancelled = error  # the connection is its own
        if cancelled is not None:
            running.exception()
            raise cancelled
        return running.result()


def aio_local() -> AioLocal:
    """The local transaction of the call that runs. Raises LookupError outside an `AioBarrier`."""
    return _current.get()


class AioBarrier(grpc.aio.ServerInterceptor):
    """Guards every unary call that names a branch; gives every other a plain local transaction, if it uses it."""

    def __init__(self, engine: Engine, threads: int | None = None) -> None:
        """`threads`: local transactions at once. None: 1 on SQLite, where more would only wait for each other, else 4."""
        threads = threads or (1 if engine.dialect.name == "sqlite" else DEFAULT_THREADS)
        create_tables(engine)
        self._engine = engine
        self._threads = ThreadPoolExecutor(threads, "barrier")
        self._slots = asyncio.Semaphore(threads)

    def close(self) -> None:
        """Let go of the threads, after the server has stopped."""
        self._threads.shutdown()

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behavior = cast(Callable[[Any, Any], Awaitable[Any]], handler.unary_unary)
        serialize = cast(Callable[[Any], bytes], handler.response_serializer or bytes)
        metadata = tuple(handler_call_details.invocation_metadata or ())

        async def guarded(request: Any, context: Context) -> bytes:
            async def work(held: Any) -> bytes:
                return serialize(await behavior(request, held))

            try:
                call = branch_call(metadata)
                answer = await self._settled(call, work, context)
            except KNOWN as error:
                await _end_with(context, ending(error))
            if call is not None:
                ANSWERS.labels(call.op, answer.outcome, answer.is_repeat).inc()
            with crossing("send", "reply"):
                stop = end(answer)
                if stop is not None:
                    await _end_with(context, stop)
            return answer.reply

        return grpc.unary_unary_rpc_method_handler(cast(Any, guarded), handler.request_deserializer, bytes)

    async def _settled(
        self, call: BranchCall | None, work: Callable[[Any], Awaitable[bytes]], context: Context
    ) -> Answer:
        session = Session(self._engine, call)
        local = AioLocal(session, self._threads, self._slots)
        try:
            if call is not None:
                await local._begin()
            return await self._answer(session, local, work, context)
        finally:
            await local._close()

    async def _answer(
        self, session: Session, local: AioLocal, work: Callable[[Any], Awaitable[bytes]], context: Context
    ) -> Answer:
        answer = None if session.call is None else await local._in_thread(session.enter)
        if answer is None:
            held = _HeldAio(context)
            token = _current.set(local)
            try:
                reply = await work(held)
                held.raise_for_code()
                answer = (
                    session.leave(reply)
                    if session.call is None
                    else await local._in_thread(lambda: session.leave(reply))
                )
                held.give_trailing_metadata()
            except Aborted as aborted:
                if aborted.code is not grpc.StatusCode.ABORTED or session.call is None:
                    raise
                answer = await local._in_thread(partial(session.refuse, refusal(aborted)))
            except Refused as refused:
                answer = await local._in_thread(partial(session.refuse, refused))
            finally:
                _current.reset(token)
        await local._commit()
        return answer


class _HeldAio(Held):
    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> NoReturn:
        raise self.aborted(code, details, tuple(trailing_metadata))


async def _end_with(context: Context, stop: Aborted) -> NoReturn:
    await context.abort(stop.code, stop.message, stop.trailing)
    raise AssertionError("abort does not return")
