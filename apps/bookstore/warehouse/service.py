"""bookstore.v1.Warehouse: check, call the shelf, answer."""

from collections.abc import Callable
from time import time_ns

from sqlalchemy import Connection

from apps.bookstore import fields
from apps.bookstore.database import Database
from apps.bookstore.edge import Context
from apps.bookstore.refusals import Reason, Refusal
from apps.bookstore.warehouse import picking, shelf
from apps.transactions.barrier import aio_local
from proto.bookstore.v1 import warehouse_pb2, warehouse_pb2_grpc


class WarehouseService(warehouse_pb2_grpc.WarehouseServicer):
    """One instance of the warehouse."""

    def __init__(self, database: Database, keeper: shelf.Keeper) -> None:
        self._database = database
        self._keeper = keeper

    async def Take(self, request: warehouse_pb2.TakeRequest, context: Context) -> warehouse_pb2.TakeResponse:
        fields.require(
            fields.order_id(request.order_id),
            fields.text("book", request.book),
            fields.between("copies", request.copies, 1, fields.MAX_COPIES),
        )
        now_ms = time_ns() // 1_000_000
        taking = await self._database.run(
            shelf.take, request.order_id, request.book, request.copies, self._keeper, now_ms
        )
        if taking.refusal is not None:
            raise Refusal(taking.refusal, taking.explanation)
        return warehouse_pb2.TakeResponse(
            amount_cents=taking.amount_cents, version=taking.keeper.version, instance=taking.keeper.instance
        )

    async def Pick(self, request: warehouse_pb2.PickRequest, context: Context) -> warehouse_pb2.PickResponse:
        return await self._branch(picking.pick, request)

    async def PutBack(self, request: warehouse_pb2.PickRequest, context: Context) -> warehouse_pb2.PickResponse:
        return await self._branch(picking.put_back, request)

    async def Reserve(self, request: warehouse_pb2.PickRequest, context: Context) -> warehouse_pb2.PickResponse:
        return await self._branch(picking.reserve, request)

    async def Ship(self, request: warehouse_pb2.PickRequest, context: Context) -> warehouse_pb2.PickResponse:
        return await self._branch(picking.ship, request)

    async def Release(self, request: warehouse_pb2.PickRequest, context: Context) -> warehouse_pb2.PickResponse:
        return await self._branch(picking.release, request)

    async def _branch(
        self, step: Callable[[Connection, str, str, int], None], request: warehouse_pb2.PickRequest
    ) -> warehouse_pb2.PickResponse:
        fields.require(
            fields.order_id(request.order_id),
            fields.text("book", request.book),
            fields.between("copies", request.copies, 1, fields.MAX_COPIES),
        )
        await aio_local().run(step, request.order_id, request.book, request.copies)
        return warehouse_pb2.PickResponse(version=self._keeper.version, instance=self._keeper.instance)

    async def GetStock(
        self, request: warehouse_pb2.GetStockRequest, context: Context
    ) -> warehouse_pb2.GetStockResponse:
        fields.require(fields.text("book", request.book))
        found = await self._database.look(shelf.stock, request.book)
        if found is None:
            raise Refusal(Reason.NO_SUCH_BOOK, f'no book "{request.book}" in the catalogue')
        return warehouse_pb2.GetStockResponse(
            copies=found.copies,
            price_cents=found.price_cents,
            version=self._keeper.version,
            instance=self._keeper.instance,
        )
