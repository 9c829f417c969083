"""A participant to test with: holdings of money or goods, and a ledger of every change with the branch that made it."""

import json
from collections.abc import Callable
from typing import Any, Final, cast

import grpc
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    update,
)

from apps.transactions.barrier import Refused, aio_local, create_tables, local
from apps.transactions.context import BranchCall

METADATA: Final = MetaData()
HOLDINGS: Final = Table(
    "holding",
    METADATA,
    Column("name", String(40), primary_key=True),
    Column("free", Integer, nullable=False),
    Column("frozen", Integer, nullable=False),
)
LEDGER: Final = Table(
    "ledger",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("gid", String(100), nullable=False),
    Column("branch", String(40), nullable=False),
    Column("op", String(16), nullable=False),
    Column("holding", String(40), nullable=False),
    Column("free", Integer, nullable=False),
    Column("frozen", Integer, nullable=False),
)


def open_engine(url: str) -> Engine:
    """Without waiting for the disk: what is killed in tests are processes."""
    connect_args = {"timeout": 1.0} if url.startswith("sqlite") else {}
    engine = create_engine(url, connect_args=connect_args)
    if url.startswith("sqlite"):
        event.listen(engine, "connect", _relax)
    return engine


def _relax(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = OFF")


def open_bank(engine: Engine, holdings: dict[str, int]) -> None:
    """Create the tables and what is held at the beginning."""
    create_tables(engine)
    create_tables(engine, METADATA)
    with engine.begin() as connection:
        for name, free in holdings.items():
            connection.execute(insert(HOLDINGS).values(name=name, free=free, frozen=0))


def request(holding: str, amount: int) -> bytes:
    """Add this amount, which may be negative."""
    return json.dumps({"holding": holding, "amount": amount}).encode()


def change(connection: Connection, call: BranchCall | None, holding: str, free: int, frozen: int) -> bytes:
    """Change a holding and write it into the ledger. Refused if that would leave less than nothing."""
    statement = (
        update(HOLDINGS)
        .where(HOLDINGS.c.name == holding, HOLDINGS.c.free + free >= 0, HOLDINGS.c.frozen + frozen >= 0)
        .values(free=HOLDINGS.c.free + free, frozen=HOLDINGS.c.frozen + frozen)
    )
    if not connection.execute(statement).rowcount:
        raise Refused(f"{holding} has too little", "TOO_LITTLE")
    gid, branch, op = (call.gid, call.branch, call.op.value) if call else ("", "", "")
    connection.execute(insert(LEDGER).values(gid=gid, branch=branch, op=op, holding=holding, free=free, frozen=frozen))
    left = connection.execute(select(HOLDINGS.c.free).where(HOLDINGS.c.name == holding)).scalar_one()
    return json.dumps({"left": left}).encode()


Work = Callable[[Connection, BranchCall | None, bytes], bytes]


def move(connection: Connection, call: BranchCall | None, body: bytes) -> bytes:
    """Saga's action, a delivery, a branch of XA: at once."""
    asked = json.loads(body)
    return change(connection, call, asked["holding"], asked["amount"], 0)


def move_back(connection: Connection, call: BranchCall | None, body: bytes) -> bytes:
    asked = json.loads(body)
    return change(connection, call, asked["holding"], -asked["amount"], 0)


def reserve(connection: Connection, call: BranchCall | None, body: bytes) -> bytes:
    """TCC's try: what goes out is frozen; what comes in is only announced."""
    asked = json.loads(body)
    out = min(asked["amount"], 0)
    return change(connection, call, asked["holding"], out, -out)


def confirm(connection: Connection, call: BranchCall | None, body: bytes) -> bytes:
    asked = json.loads(body)
    amount = asked["amount"]
    return change(connection, call, asked["holding"], max(amount, 0), min(amount, 0))


def cancel(connection: Connection, call: BranchCall | None, body: bytes) -> bytes:
    asked = json.loads(body)
    out = min(asked["amount"], 0)
    return change(connection, call, asked["holding"], -out, out)


def abort(connection: Connection, call: BranchCall | None, body: bytes) -> bytes:
    """Writes, and then ends with the status that is asked for."""
    change(connection, call, "reader", -1, 0)
    raise Aborted(grpc.StatusCode[body.decode()], "as asked")


METHODS: Final[dict[str, Work]] = {
    "Abort": abort,
    "Move": move,
    "MoveBack": move_back,
    "Reserve": reserve,
    "Confirm": confirm,
    "Cancel": cancel,
}
SERVICE: Final = "bank.Bank"


def holdings(engine: Engine) -> dict[str, tuple[int, int]]:
    """Name to (free, frozen)."""
    with engine.connect() as connection:
        return {row.name: (row.free, row.frozen) for row in connection.execute(select(HOLDINGS))}


def ledger(engine: Engine) -> list[tuple[str, str, str, str, int, int]]:
    """(gid, branch, op, holding, free, frozen) in the order written."""
    with engine.connect() as connection:
        rows = connection.execute(select(LEDGER).order_by(LEDGER.c.seq))
        return [(row.gid, row.branch, row.op, row.holding, row.free, row.frozen) for row in rows]


class Aborted(Exception):
    """What the handlers turn into a `context.abort`."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class AioHandlers(grpc.GenericRpcHandler):
    """The bank behind an `AioBarrier`."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        work = _work(handler_call_details)
        if work is None:
            return None

        async def behavior(body: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            local = aio_local()
            try:
                return await local.run(work, local.call, body)
            except Aborted as aborted:
                await context.abort(aborted.code, str(aborted), (("x-why", "asked"),))

        return grpc.unary_unary_rpc_method_handler(cast(Any, behavior))


class SyncHandlers(grpc.GenericRpcHandler):
    """The bank behind a `Barrier`."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        work = _work(handler_call_details)
        if work is None:
            return None

        def behavior(body: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return work(local().connection, local().call, body)
            except Aborted as aborted:
                context.set_trailing_metadata((("x-why", "asked"),))
                context.abort(aborted.code, str(aborted))

        return grpc.unary_unary_rpc_method_handler(behavior)


def _work(details: grpc.HandlerCallDetails) -> Work | None:
    service, _, method = str(details.method).removeprefix("/").partition("/")
    return METHODS.get(method) if service == SERVICE else None
