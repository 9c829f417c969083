"""`python -m apps.bookstore.accounts`; `serving` says what the environment sets."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from apps.bookstore import branches, movements, serving
from apps.bookstore.accounts import ledger
from apps.bookstore.accounts.service import AccountsService
from apps.bookstore.database import Database
from proto.bookstore.v1 import accounts_pb2, accounts_pb2_grpc


@asynccontextmanager
async def attach(server: grpc.aio.Server, settings: serving.Settings) -> AsyncIterator[None]:
    """Put accounts on a server."""
    database = Database(settings.place(ledger.FILE), settings.synchronous)
    try:
        await database.run(movements.prepare)
        await database.run(ledger.prepare)
        accounts_pb2_grpc.add_AccountsServicer_to_server(AccountsService(database), server)
        async with branches.resolving(database):
            yield
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(serving.run(accounts_pb2.DESCRIPTOR.services_by_name["Accounts"], attach, joins_with=ledger.FILE))
