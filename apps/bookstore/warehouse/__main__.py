"""`python -m apps.bookstore.warehouse`; `serving` says what the environment sets."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from apps.bookstore import branches, movements, serving
from apps.bookstore.catalogue import BOOKS, DEFAULT_COPIES
from apps.bookstore.database import Database
from apps.bookstore.warehouse import shelf
from apps.bookstore.warehouse.service import WarehouseService
from proto.bookstore.v1 import warehouse_pb2, warehouse_pb2_grpc


@asynccontextmanager
async def attach(server: grpc.aio.Server, settings: serving.Settings) -> AsyncIterator[None]:
    """Put the warehouse on a server; fills the shelf if it is new."""
    database = Database(settings.place(shelf.FILE), settings.synchronous)
    try:
        await database.run(movements.prepare)
        await database.run(shelf.prepare, BOOKS, DEFAULT_COPIES)
        keeper = shelf.Keeper(settings.version, settings.instance)
        warehouse_pb2_grpc.add_WarehouseServicer_to_server(WarehouseService(database, keeper), server)
        async with branches.resolving(database):
            yield
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(serving.run(warehouse_pb2.DESCRIPTOR.services_by_name["Warehouse"], attach, joins_with=shelf.FILE))
