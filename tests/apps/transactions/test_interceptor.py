"""The barrier around a real server, synchronous and asyncio: the same participant, the same answers."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import Connection, Engine, text

from apps.transactions.barrier import AioBarrier, AioLocal, Barrier, core
from apps.transactions.barrier.session import Session
from apps.transactions.context import BranchCall, Op
from tests.apps.transactions import bank
from tests.apps.transactions.bank import holdings, ledger, open_bank
from tests.waiting import eventually, eventually_async

DEBIT = bank.request("reader", -30)
Outcome = tuple[grpc.StatusCode, bytes | str]


@asynccontextmanager
async def aio_server(engine: Engine) -> AsyncIterator[str]:
    barrier = AioBarrier(engine)
    server = grpc.aio.server(interceptors=[barrier], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((bank.AioHandlers(),))
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)
    barrier.close()


@asynccontextmanager
async def sync_server(engine: Engine) -> AsyncIterator[str]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[Barrier(engine)], options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((bank.SyncHandlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    await asyncio.to_thread(server.stop(None).wait)


class Caller:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.error: grpc.aio.AioRpcError | None = None

    async def __call__(self, method: str, op: Op | None, body: bytes = DEBIT, **metadata: str) -> Outcome:
        sent = dict(BranchCall("g", "b", op).metadata()) if op else {}
        sent |= {key.replace("_", "-"): value for key, value in metadata.items()}
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(f"/{bank.SERVICE}/{method}")
        try:
            return grpc.StatusCode.OK, await call(body, metadata=tuple(sent.items()), timeout=10)
        except grpc.aio.AioRpcError as error:
            self.error = error
            return error.code(), error.details() or ""

    @property
    def reason(self) -> str:
        """Of the last failure, from its details."""
        assert self.error is not None
        trailing: dict[str, Any] = {str(key): value for key, value in self.error.trailing_metadata() or ()}
        info = error_details_pb2.ErrorInfo()
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        assert any(each.Unpack(info) for each in status.details)
        return str(info.reason)


@pytest.fixture(params=["aio", "sync"])
async def call(request: pytest.FixtureRequest, engine: Engine) -> AsyncIterator[Caller]:
    open_bank(engine, {"reader": 100})
    serve = aio_server if request.param == "aio" else sync_server
    async with serve(engine) as target, grpc.aio.insecure_channel(target) as channel:
        yield Caller(channel)


async def test_a_repeated_request_is_carried_out_once_and_answered_the_same(call: Caller, engine: Engine) -> None:
    answers = await asyncio.gather(*(call("Move", Op.ACTION) for _ in range(5)))
    assert answers == [(grpc.StatusCode.OK, b'{"left": 70}')] * 5
    assert ledger(engine) == [("g", "b", "action", "reader", -30, 0)]


async def test_a_late_try_is_told_that_it_is_late(call: Caller, engine: Engine) -> None:
    assert await call("Cancel", Op.CANCEL) == (grpc.StatusCode.OK, b"")
    code, message = await call("Reserve", Op.TRY)
    assert (code, message) == (grpc.StatusCode.ABORTED, "g/b/try comes after it was taken back")
    assert call.reason == core.HANGING
    assert holdings(engine) == {"reader": (100, 0)}


async def test_a_refusal_is_repeated_with_its_details(call: Caller, engine: Engine) -> None:
    too_much = bank.request("reader", -130)
    first = await call("Move", Op.ACTION, too_much)
    assert first == (grpc.StatusCode.ABORTED, "reader has too little")
    assert call.reason == "TOO_LITTLE"
    assert await call("Move", Op.ACTION, too_much) == first
    assert call.reason == "TOO_LITTLE"


async def test_an_abort_of_the_handler_is_kept_before_it_is_answered(call: Caller, engine: Engine) -> None:
    assert await call("Abort", Op.ACTION, b"ABORTED") == (grpc.StatusCode.ABORTED, "as asked")
    assert await call("Move", Op.ACTION) == (grpc.StatusCode.ABORTED, "as asked"), "the branch is settled"
    assert holdings(engine) == {"reader": (100, 0)}


async def test_any_other_failure_of_the_handler_leaves_nothing(call: Caller, engine: Engine) -> None:
    assert await call("Abort", Op.ACTION, b"INTERNAL") == (grpc.StatusCode.INTERNAL, "as asked")
    assert call.error is not None
    assert ("x-why", "asked") in list(call.error.trailing_metadata() or ())
    assert holdings(engine) == {"reader": (100, 0)}
    assert await call("Move", Op.ACTION) == (grpc.StatusCode.OK, b'{"left": 70}')


async def test_a_call_without_a_branch_is_a_plain_local_transaction(call: Caller, engine: Engine) -> None:
    assert await call("Move", None) == (grpc.StatusCode.OK, b'{"left": 70}')
    assert await call("Move", None) == (grpc.StatusCode.OK, b'{"left": 40}')
    assert await call("Abort", None, b"ABORTED") == (grpc.StatusCode.ABORTED, "as asked")
    assert holdings(engine) == {"reader": (40, 0)}


async def test_a_locked_database_means_ask_again_and_never_roll_back(call: Caller, engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL locks rows, not databases")
    with engine.connect() as connection:
        connection.execute(text("PRAGMA busy_timeout"))
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        code, _ = await call("Move", Op.ACTION)
        connection.rollback()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert call.reason == "DATABASE"
    assert await call("Move", Op.ACTION) == (grpc.StatusCode.OK, b'{"left": 70}')


async def test_a_call_that_needs_no_database_is_answered_while_branches_wait_for_it(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL locks rows, not databases")
    open_bank(engine, {"reader": 100})
    async with aio_server(engine) as target, grpc.aio.insecure_channel(target) as channel:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            branch = asyncio.create_task(Caller(channel)("Move", Op.ACTION))
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert (answer.status, branch.done()) == (health_pb2.HealthCheckResponse.SERVING, False)
            connection.rollback()
        await branch


@pytest.mark.parametrize(
    ("metadata", "code", "message"),
    [
        ({"x_tx_op": "guess"}, grpc.StatusCode.INVALID_ARGUMENT, "x-tx-op: 'guess' is no operation"),
        ({"x_tx_branch": ""}, grpc.StatusCode.INVALID_ARGUMENT, "x-tx-branch: is missing"),
        ({"x_tx_gid": "a b"}, grpc.StatusCode.INVALID_ARGUMENT, "characters that are not allowed"),
        ({"x_tx_gid": "a" * 101}, grpc.StatusCode.INVALID_ARGUMENT, "is too long (101 characters)"),
        ({"x_tx_protocol": "2"}, grpc.StatusCode.UNIMPLEMENTED, "'2' is not spoken here; 1 is"),
    ],
)
async def test_metadata_that_name_no_branch_are_refused(
    call: Caller, engine: Engine, metadata: dict[str, str], code: grpc.StatusCode, message: str
) -> None:
    got, text = await call("Move", Op.ACTION, DEBIT, **metadata)
    assert got is code
    assert message in str(text)
    assert holdings(engine) == {"reader": (100, 0)}


async def test_the_coordinator_is_told_whether_the_initiator_committed(call: Caller, engine: Engine) -> None:
    with engine.begin() as connection:
        core.mark(connection, "g")
    assert await call("Move", Op.QUERY) == (grpc.StatusCode.OK, b"")
    code, _ = await call("Move", Op.QUERY, x_tx_gid="other")
    assert (code, call.reason) == (grpc.StatusCode.ABORTED, "NOT_COMMITTED")
    assert ledger(engine) == []


async def test_a_contradiction_is_not_hidden(call: Caller, engine: Engine) -> None:
    code, _ = await call("Confirm", Op.CONFIRM)
    assert (code, call.reason) == (grpc.StatusCode.DATA_LOSS, core.NEVER_DONE)


async def test_a_caller_that_leaves_does_not_leave_a_transaction_open(engine: Engine) -> None:
    open_bank(engine, {"reader": 1000})
    async with aio_server(engine) as target, grpc.aio.insecure_channel(target) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{bank.SERVICE}/Move")
        calls = [method(DEBIT, metadata=BranchCall(f"g{i}", "b", Op.ACTION).metadata()) for i in range(20)]
        await calls[0]
        for each in calls:
            each.cancel()
        # Whatever was carried out was carried out whole, and nobody holds a lock: the next call gets through.
        code, _ = await Caller(channel)("Move", Op.ACTION, bank.request("reader", 1000))
        assert code is grpc.StatusCode.OK

    def agrees() -> bool:
        return holdings(engine)["reader"][0] == 1000 + sum(row[4] for row in ledger(engine))

    eventually(agrees)


async def test_a_call_that_is_cancelled_again_and_again_waits_for_its_thread(engine: Engine) -> None:
    started, release = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        local = AioLocal(Session(engine, None), threads, asyncio.Semaphore(1))

        def work(connection: Connection) -> None:
            started.set()
            release.wait(10)

        task = asyncio.create_task(local.run(work))
        await eventually_async(started.is_set)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not task.done(), "its connection would be closed under the thread's feet"
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await local._in_thread(local._session.close)
