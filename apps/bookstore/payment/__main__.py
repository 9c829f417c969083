"""`python -m apps.bookstore.payment`; `serving` says what the environment sets. Also: BANK_TARGET, TRANSACTIONS_TARGET, PURCHASES."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from apps.bookstore import branches, calling, serving
from apps.bookstore.database import Database
from apps.bookstore.payment import earnings
from apps.bookstore.payment.service import PaymentService
from apps.bookstore.payment.teller import Teller
from proto.bookstore.v1 import payment_pb2, payment_pb2_grpc


@asynccontextmanager
async def attach(server: grpc.aio.Server, settings: serving.Settings) -> AsyncIterator[None]:
    """Put payment on a server, with the teller beside it."""
    database = Database(settings.place(earnings.FILE), settings.synchronous)
    try:
        await database.run(earnings.prepare)
        async with (
            calling.channel(os.environ.get("BANK_TARGET") or calling.BANK) as bank,
            branches.resolving(database),
            asyncio.TaskGroup() as tasks,
        ):
            payment_pb2_grpc.add_PaymentServicer_to_server(PaymentService(database), server)
            teller = Teller(database, bank, is_naive=settings.purchases == "naive")
            paying = tasks.create_task(teller.run())
            yield
            paying.cancel()
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(serving.run(payment_pb2.DESCRIPTOR.services_by_name["Payment"], attach, joins_with=earnings.FILE))
