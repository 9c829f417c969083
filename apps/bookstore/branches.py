"""Where the bookstore's services become branches of transactions: the barrier, and what their refusals mean to it.

The same method serves a plain call and a branch. A plain call that is refused gets its status from `edge`; a branch that is refused is a
final no, which the barrier keeps and repeats, and which takes the whole transaction back (ABORTED).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from sqlalchemy.exc import DBAPIError

from apps.bookstore import calling
from apps.bookstore.database import Database, DatabaseAway, Place, database_name, open_engine
from apps.bookstore.edge import Call, Context, Handler
from apps.bookstore.refusals import DOMAIN, OF_A_BRANCH, Refusal
from apps.transactions import xa
from apps.transactions.barrier import AioBarrier, Refused
from apps.transactions.client import Transactions
from apps.transactions.context import branch_call


@contextmanager
def joining(place: Place, synchronous: str) -> Iterator[Sequence[grpc.aio.ServerInterceptor]]:
    """The interceptors of a server that takes part in transactions with this database. Raises DatabaseAway."""
    engine = open_engine(place, synchronous)
    try:
        barrier = AioBarrier(engine)
    except DBAPIError as error:
        raise DatabaseAway(f"{database_name(engine)}: {error.orig}") from None
    try:
        yield barrier, _Refusals()
    finally:
        barrier.close()
        engine.dispose()


@asynccontextmanager
async def resolving(database: Database) -> AsyncIterator[None]:
    """On PostgreSQL, ask the coordinator about branches of XA that are left in doubt, as long as the context lasts."""
    if database.engine.dialect.name != "postgresql":
        yield
        return
    coordinator = Transactions(os.environ.get("TRANSACTIONS_TARGET") or calling.TRANSACTIONS)
    task = asyncio.create_task(xa.keep_resolving(database.engine, xa.ask(coordinator)))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await coordinator.close()


class _Refusals(grpc.aio.ServerInterceptor):
    """Stands behind the barrier and tells it which refusals are final."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        call = cast(Call, handler.unary_unary)
        metadata = tuple(handler_call_details.invocation_metadata or ())

        async def told(request: Any, context: Context) -> Any:
            try:
                return await call(request, context)
            except Refusal as refusal:
                if refusal.reason not in OF_A_BRANCH or branch_call(metadata) is None:
                    raise
                raise Refused(refusal.text, details=(_info(refusal),)) from None

        return grpc.unary_unary_rpc_method_handler(
            cast(Any, told), handler.request_deserializer, handler.response_serializer
        )


def _info(refusal: Refusal) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN))
    return packed
