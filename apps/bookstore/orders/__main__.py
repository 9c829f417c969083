"""`python -m apps.bookstore.orders`; `serving` says what the environment sets. Also: WAREHOUSE_TARGET, ACCOUNTS_TARGET."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from apps.bookstore import calling, serving
from apps.bookstore.database import Database
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.purchase import Purchases
from apps.bookstore.orders.service import OrdersService
from apps.bookstore.orders.settler import Settler
from proto.bookstore.v1 import orders_pb2, orders_pb2_grpc


@asynccontextmanager
async def attach(server: grpc.aio.Server, settings: serving.Settings) -> AsyncIterator[None]:
    """Put orders on a server, with the settler beside it."""
    database = Database(settings.directory / orderbook.FILE, settings.synchronous)
    try:
        await database.run(orderbook.prepare)
        async with (
            calling.channel(os.environ.get("WAREHOUSE_TARGET") or calling.WAREHOUSE) as warehouse,
            calling.channel(os.environ.get("ACCOUNTS_TARGET") or calling.ACCOUNTS) as accounts,
            asyncio.TaskGroup() as tasks,
        ):
            purchases = Purchases(database, warehouse, accounts)
            orders_pb2_grpc.add_OrdersServicer_to_server(OrdersService(database, purchases), server)
            settler = tasks.create_task(Settler(database, purchases).run())
            yield
            settler.cancel()
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(serving.run(orders_pb2.DESCRIPTOR.services_by_name["Orders"], attach))
