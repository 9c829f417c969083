"""`python -m apps.bookstore.orders`; `serving` says what the environment sets. Also: WAREHOUSE_TARGET, ACCOUNTS_TARGET;

with PURCHASES other than forward, PAYMENT_TARGET, NOTIFICATION_TARGET, ORDERS_TARGET (itself) and TRANSACTIONS_TARGET, too.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from apps.bookstore import calling, serving
from apps.bookstore.database import Database
from apps.bookstore.orders import orderbook
from apps.bookstore.orders.purchase import Purchases, Way
from apps.bookstore.orders.service import PURCHASE_TIMEOUT_S, OrdersService
from apps.bookstore.orders.settler import Settler
from apps.bookstore.orders.ways.desk import Desk, Targets
from apps.transactions.client import Transactions
from proto.bookstore.v1 import orders_pb2, orders_pb2_grpc


@asynccontextmanager
async def attach(server: grpc.aio.Server, settings: serving.Settings) -> AsyncIterator[None]:
    """Put orders on a server, with the settler beside it."""
    database = Database(settings.place(orderbook.FILE), settings.synchronous)
    try:
        await database.run(orderbook.prepare)
        opening = _forward(database) if settings.purchases == "forward" else _by_way(database, settings.purchases)
        async with opening as (way, desk), asyncio.TaskGroup() as tasks:
            orders_pb2_grpc.add_OrdersServicer_to_server(OrdersService(database, way, desk), server)
            beside = [tasks.create_task(desk.relay.run())] if desk is not None else []
            if settings.purchases != "naive":  # which sees to nothing that its process did not live to see
                beside.append(tasks.create_task(Settler(database, way).run()))
            yield
            for each in beside:
                each.cancel()
    finally:
        database.close()


@asynccontextmanager
async def _forward(database: Database) -> AsyncIterator[tuple[Way, None]]:
    async with (
        calling.channel(os.environ.get("WAREHOUSE_TARGET") or calling.WAREHOUSE) as warehouse,
        calling.channel(os.environ.get("ACCOUNTS_TARGET") or calling.ACCOUNTS) as accounts,
    ):
        yield Purchases(database, warehouse, accounts), None


@asynccontextmanager
async def _by_way(database: Database, name: str) -> AsyncIterator[tuple[Way, Desk]]:
    from apps.bookstore.orders import ways

    coordinator = Transactions(os.environ.get("TRANSACTIONS_TARGET") or calling.TRANSACTIONS, wait_s=PURCHASE_TIMEOUT_S)
    try:
        desk = Desk(database, coordinator, Targets.of(os.environ))
        yield ways.way(name, desk), desk
    finally:
        await coordinator.close()


if __name__ == "__main__":
    sys.exit(serving.run(orders_pb2.DESCRIPTOR.services_by_name["Orders"], attach))
