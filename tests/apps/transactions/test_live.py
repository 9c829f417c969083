"""Transactions over real sockets and databases: every mode, to both ends; replicas; bad input."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from apps.transactions.barrier import Refused, mark
from apps.transactions.client import NotEnded, RolledBack
from apps.transactions.coordinator import metrics
from apps.transactions.coordinator.log import Fenced, LogUnavailable, Record
from proto.transactions.v1 import coordinator_pb2 as pb
from tests.apps.transactions import bank
from tests.apps.transactions.bank import request
from tests.apps.transactions.live import QUICK, World, replica, world
from tests.waiting import eventually_async


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def held(shop: World) -> dict[str, tuple[int, int]]:
    return bank.holdings(shop.warehouse.database) | bank.holdings(shop.accounts.database)


UNTOUCHED = {"books": (10, 0), "sold": (0, 0), "reader": (100, 0), "till": (0, 0)}
BOUGHT = {"books": (9, 0), "sold": (0, 0), "reader": (70, 0), "till": (30, 0)}


async def state(shop: World, gid: str) -> str:
    return pb.State.Name((await shop.one.client.query(gid)).state)


# Saga


def purchase(shop: World, gid: str, price: int = 30) -> Any:
    move, back = shop.accounts.url("Move"), shop.accounts.url("MoveBack")
    saga = shop.one.client.saga(gid)
    saga.step("take", shop.warehouse.url("Move"), request("books", -1), undo=shop.warehouse.url("MoveBack"))
    saga.step("debit", move, request("reader", -price), undo=back)
    return saga.step("credit", move, request("till", price), undo=None)


async def test_a_saga_takes_effect_in_every_service(shop: World) -> None:
    ended = await purchase(shop, "g").run()
    assert ended.state == pb.SUCCEEDED
    assert held(shop) == BOUGHT
    await purchase(shop, "g").run()
    assert held(shop) == BOUGHT, "the same gid again buys nothing more"


async def test_a_refused_step_takes_the_whole_saga_back(shop: World) -> None:
    with pytest.raises(RolledBack, match="debit: ABORTED: reader has too little"):
        await purchase(shop, "g", price=130).run()
    assert held(shop) == UNTOUCHED
    assert [row[2] for row in bank.ledger(shop.warehouse.database)] == ["action", "compensate"]


async def test_a_saga_costs_two_writes_and_one_more_before_the_step_without_a_way_back(shop: World) -> None:
    before = shop.one.log.writes
    saga = shop.one.client.saga("g")
    for name in ("books", "sold"):
        saga.step(name, shop.warehouse.url("Move"), request(name, 1), undo=shop.warehouse.url("MoveBack"), after=())
    await saga.run()
    middle = shop.one.log.writes
    await purchase(shop, "h").run()
    # The replica's signs of life are writes too; they are few.
    assert 2 <= middle - before <= 4
    assert 3 <= shop.one.log.writes - middle <= 5


# TCC


async def reserve(shop: World, tcc: Any, price: int = 30) -> None:
    for name, at, body in (
        ("ship", shop.warehouse, request("books", -1)),
        ("debit", shop.accounts, request("reader", -price)),
        ("credit", shop.accounts, request("till", price)),
    ):
        await tcc.call(name, at.url("Reserve"), body, confirm=at.url("Confirm"), cancel=at.url("Cancel"))


async def test_what_was_tried_is_frozen_and_then_confirmed(shop: World) -> None:
    async with shop.one.client.tcc("g") as tcc:
        await reserve(shop, tcc)
        assert held(shop) == {"books": (9, 1), "sold": (0, 0), "reader": (70, 30), "till": (0, 0)}
    assert held(shop) == BOUGHT


async def test_branches_that_are_planned_cost_no_write_of_their_own(shop: World) -> None:
    before = shop.one.log.writes
    tcc = shop.one.client.tcc("g")
    for name, holder, amount in (
        ("take", shop.warehouse, request("books", -1)),
        ("pay", shop.accounts, request("reader", -30)),
    ):
        tcc.plan(name, holder.url("Reserve"), amount, confirm=holder.url("Confirm"), cancel=holder.url("Cancel"))
    async with tcc:
        for name in ("take", "pay"):
            await tcc.attempt(name)
    assert 3 <= shop.one.log.writes - before <= 5
    assert held(shop) == {"books": (9, 0), "sold": (0, 0), "reader": (70, 0), "till": (0, 0)}


async def test_a_planned_branch_that_was_never_tried_is_cancelled_without_effect(shop: World) -> None:
    tcc = shop.one.client.tcc("g")
    for name, holder, amount in (
        ("pay", shop.accounts, request("reader", -130)),
        ("take", shop.warehouse, request("books", -1)),
    ):
        tcc.plan(name, holder.url("Reserve"), amount, confirm=holder.url("Confirm"), cancel=holder.url("Cancel"))
    with pytest.raises(grpc.aio.AioRpcError, match="too little"):
        async with tcc:
            await tcc.attempt("pay")
            await tcc.attempt("take")
    await eventually_async(lambda: is_state(shop, "g", "FAILED"))
    assert held(shop) == UNTOUCHED


async def test_a_refused_try_cancels_the_others(shop: World) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="reader has too little"):
        async with shop.one.client.tcc("g") as tcc:
            await reserve(shop, tcc, price=130)
    await eventually_async(lambda: held(shop) == UNTOUCHED)
    await eventually_async(lambda: is_state(shop, "g", "FAILED"))
    assert (await shop.one.client.query("g")).reason == "ABORTED: reader has too little", "in one line"


async def is_state(shop: World, gid: str, wanted: str) -> bool:
    return await state(shop, gid) == wanted


async def test_an_initiator_that_vanishes_has_its_tries_cancelled(shop: World) -> None:
    tcc = shop.one.client.tcc("g", timeout_s=0.3)
    await tcc.__aenter__()
    await reserve(shop, tcc)
    await eventually_async(lambda: held(shop) == UNTOUCHED)
    with pytest.raises(RolledBack, match="time over"):
        await tcc.__aexit__(None, None, None)


async def test_who_begins_again_what_was_taken_back_is_told_so(shop: World) -> None:
    stub = shop.one.client.stub
    tcc = await shop.one.client.tcc("g").__aenter__()
    await stub.Abort(pb.AbortRequest(gid="g", reason="changed my mind", wait_s=5))
    with pytest.raises(RolledBack, match="changed my mind"):
        await reserve(shop, tcc)
    with pytest.raises(RolledBack, match="changed my mind"):
        await shop.one.client.tcc("g").__aenter__()
    with pytest.raises(RolledBack, match="changed my mind"):
        await tcc.__aexit__(None, None, None)


async def test_a_branch_is_added_before_it_is_called(shop: World) -> None:
    tcc = await shop.one.client.tcc("g").__aenter__()
    at = shop.accounts
    body, confirm = request("reader", -30), at.url("Confirm")
    with pytest.raises(grpc.aio.AioRpcError, match="has a scheme that is not known"):
        await tcc.call("debit", at.url("Reserve"), body, confirm=confirm, cancel="http://there/Cancel")
    assert bank.ledger(at.database) == [], "a branch that the coordinator does not know of was not called"


async def test_a_decision_is_durable_before_anybody_is_told(shop: World) -> None:
    tcc = await shop.one.client.tcc("g").__aenter__()
    await reserve(shop, tcc)
    await shop.one.client.stub.Submit(pb.SubmitRequest(gid="g"))
    with shop.one.database.connect() as connection:
        stored = connection.exec_driver_sql("SELECT state FROM tx_log").scalar_one()
    assert stored in ("finishing", "succeeded")


# Two-phase message


def message(shop: World, gid: str, timeout_s: float = 30.0) -> Any:
    made = shop.one.client.message(gid, query=shop.accounts.url("Move"), timeout_s=timeout_s)
    return made.deliver("ship", shop.warehouse.url("Move"), request("books", -1))


def pay(shop: World, gid: str) -> None:
    """The initiator's local transaction."""
    with shop.accounts.database.begin() as connection:
        bank.change(connection, None, "reader", -30, 0)
        bank.change(connection, None, "till", 30, 0)
        mark(connection, gid)


async def test_a_message_is_delivered_when_the_local_transaction_has_committed(shop: World) -> None:
    async with message(shop, "g"):
        pay(shop, "g")
    assert held(shop) == BOUGHT


async def test_a_message_whose_initiator_dies_behind_its_commit_is_delivered(shop: World) -> None:
    await message(shop, "g", timeout_s=0.2).__aenter__()
    pay(shop, "g")
    await eventually_async(lambda: held(shop) == BOUGHT)


async def test_a_message_whose_initiator_dies_before_its_commit_is_not_and_the_commit_cannot_follow(
    shop: World,
) -> None:
    await message(shop, "g", timeout_s=0.2).__aenter__()
    await eventually_async(lambda: is_state(shop, "g", "FAILED"))
    with pytest.raises(Refused, match="was given up"):
        pay(shop, "g")
    assert held(shop) == UNTOUCHED


async def test_a_local_transaction_that_fails_delivers_nothing(shop: World) -> None:
    with pytest.raises(ZeroDivisionError):
        async with message(shop, "g"):
            raise ZeroDivisionError
    await eventually_async(lambda: is_state(shop, "g", "FAILED"))
    assert held(shop) == UNTOUCHED


# Trouble


async def test_a_participant_that_is_away_makes_a_dead_letter_and_its_return_ends_it(shop: World) -> None:
    saga = shop.one.client.saga("g")
    shop.one.client.wait_s = 0.1
    saga.step(
        "take", "grpc://127.0.0.1:1/bank.Bank/Move", request("books", -1), undo="grpc://127.0.0.1:1/bank.Bank/Move"
    )
    with pytest.raises(NotEnded, match="g is running still"):
        await saga.run()
    stub = shop.one.client.stub

    async def is_dead() -> bool:
        found = await stub.List(pb.ListRequest(only_dead_letters=True))
        return [each.gid for each in found.transactions] == ["g"]

    await eventually_async(is_dead)
    await eventually_async(lambda: metrics.DEAD_LETTERS._value.get() >= 1, message="the alarm goes off")
    shown = await shop.one.client.query("g")
    assert (shown.is_dead_letter, shown.progress[0].attempts >= QUICK.retries.dead_after) == (True, True)
    assert "UNAVAILABLE" in shown.progress[0].last_error
    assert not (await stub.Retry(pb.RetryRequest(gid="g"))).is_dead_letter
    await eventually_async(is_dead, message="it fails again, and is a dead letter again")
    await stub.Abort(pb.AbortRequest(gid="g", reason="the warehouse burnt down"))
    forced = await stub.Force(pb.ForceRequest(gid="g", reason="nothing left to take back; Kim"))
    assert (forced.state, forced.reason) == (pb.FAILED, "forced: nothing left to take back; Kim")


async def test_an_undecided_transaction_is_not_forced(shop: World) -> None:
    await shop.one.client.tcc("g").__aenter__()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.one.client.stub.Force(pb.ForceRequest(gid="g", reason="me"))
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.FAILED_PRECONDITION, "DECIDED")


async def test_what_is_decided_is_not_aborted(shop: World) -> None:
    await purchase(shop, "g").run()
    with pytest.raises(grpc.aio.AioRpcError, match="g is succeeded"):
        await shop.one.client.stub.Abort(pb.AbortRequest(gid="g"))


# Replicas


async def test_a_transaction_is_begun_at_one_replica_and_submitted_at_another(shop: World) -> None:
    async with shop.other() as two:
        tcc = shop.one.client.tcc("g")
        await tcc.__aenter__()
        await reserve(shop, tcc)
        ended = await two.client.submit(pb.SubmitRequest(gid="g"))
        assert ended.state == pb.SUCCEEDED
        assert held(shop) == BOUGHT
        assert (await shop.one.client.query("g")).token == 2
        again = await shop.one.client.submit(pb.SubmitRequest(gid="g"))
        assert again.state == pb.SUCCEEDED


async def test_a_replica_that_ends_leaves_its_transactions_to_the_others(shop: World, tmp_path: Path) -> None:
    async with shop.other() as two:
        tcc = two.client.tcc("g", timeout_s=0.5)
        await tcc.__aenter__()
        await reserve(shop, tcc)
    await eventually_async(lambda: held(shop) == UNTOUCHED)
    assert (await shop.one.client.query("g")).owner.startswith("one:")


async def test_a_replica_that_was_taken_for_dead_cannot_write_any_more(shop: World) -> None:
    async with shop.other(
        replace(QUICK, name="two", session_ttl_s=3600.0)
    ) as paused:  # gives no sign of life for an hour
        tcc = paused.client.tcc("g")
        await tcc.__aenter__()
        await reserve(shop, tcc)
        stale = await paused.log.read("g")
        assert stale is not None

        async def is_taken_over() -> bool:
            return (await shop.one.client.query("g")).owner.startswith("one:")

        await eventually_async(is_taken_over)
        with pytest.raises(Fenced):
            await paused.log.write(stale, stale.token)
        # What it is asked to do it does all the same, with a token of its own, or not at all.
        ended = await paused.client.submit(pb.SubmitRequest(gid="g"))
        assert ended.state == pb.SUCCEEDED
        assert held(shop) == BOUGHT


async def test_whoever_waits_at_the_wrong_replica_waits_all_the_same(shop: World) -> None:
    async with shop.other() as two:
        one, other = await asyncio.gather(purchase(shop, "g").run(), submit_at(two.client, shop, "g"))
        assert (one.state, other.state) == (pb.SUCCEEDED, pb.SUCCEEDED)
        assert held(shop) == BOUGHT


async def submit_at(client: Any, shop: World, gid: str) -> Any:
    saga = purchase(shop, gid)
    return await client.submit(pb.SubmitRequest(gid=gid, mode=pb.SAGA, branches=saga._branches, options=saga._options))


# Bad input


def reason(error: grpc.aio.AioRpcError) -> str:
    trailing: dict[str, Any] = {str(key): value for key, value in error.trailing_metadata() or ()}
    info = error_details_pb2.ErrorInfo()
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert any(each.Unpack(info) for each in status.details)
    assert info.domain == "transactions"
    return str(info.reason)


GOOD = pb.Call(target="grpc://there:1/a.B/C", body=b"x")


def branch(name: str = "a", **changes: Any) -> pb.Branch:
    made = pb.Branch(name=name, forward=GOOD, undo=GOOD)
    made.MergeFrom(pb.Branch(**changes))
    return made


def one_way(name: str, *after: str) -> pb.Branch:
    return pb.Branch(name=name, forward=GOOD, cannot_be_undone=True, after=after)


BAD = [
    (pb.SubmitRequest(branches=[branch()]), "BAD_MODE", "mode: 0 is not known; one of SAGA, TCC, XA, MESSAGE is"),
    (pb.SubmitRequest(gid="a b"), "NO_SUCH_GID", "there is no transaction 'a b'"),
    (pb.SubmitRequest(gid="a b", mode=pb.SAGA, branches=[branch()]), "BAD_NAME", "gid: 'a b' has characters"),
    (pb.SubmitRequest(mode=pb.SAGA), "NO_BRANCH", "branches: there are none; give at least one"),
    (pb.SubmitRequest(mode=pb.SAGA, branches=[branch(), branch()]), "BRANCH_TWICE", "names are unique"),
    (pb.SubmitRequest(mode=pb.SAGA, branches=[branch(after=["z"])]), "UNKNOWN_BRANCH", 'there is no branch "z"'),
    (
        pb.SubmitRequest(
            mode=pb.SAGA, branches=[branch("a", after=["b"]), branch("b", after=["c"]), branch("c", after=["a"])]
        ),
        "CYCLE",
        "a after b after c after a is a circle",
    ),
    (pb.SubmitRequest(mode=pb.SAGA, branches=[branch(after=["a"])]), "CYCLE", "a after a is a circle"),
    (
        pb.SubmitRequest(mode=pb.SAGA, branches=[pb.Branch(name="a", forward=GOOD)]),
        "NO_COMPENSATION",
        "or say cannot_be_undone",
    ),
    (pb.SubmitRequest(mode=pb.SAGA, branches=[pb.Branch(name="a", undo=GOOD)]), "NO_CALL", 'give the action of "a"'),
    (pb.SubmitRequest(mode=pb.SAGA, branches=[one_way("a"), branch("b", after=["a"])]), "NO_WAY_BACK", "come last"),
    (
        pb.SubmitRequest(mode=pb.TCC, branches=[pb.Branch(name="a", finish=GOOD)]),
        "NO_COMPENSATION",
        'give cancel of "a"',
    ),
    (pb.SubmitRequest(mode=pb.TCC, branches=[one_way("a")]), "BAD_OPTION", "only a saga's step"),
    (pb.SubmitRequest(mode=pb.MESSAGE, branches=[branch(finish=GOOD)]), "BAD_CALL", "a message has no such call"),
    (
        pb.SubmitRequest(mode=pb.SAGA, branches=[branch(forward=pb.Call(target="http://there/x"))]),
        "UNKNOWN_SCHEME",
        '"http://there/x" has a scheme that is not known; grpc:// is',
    ),
    (
        pb.SubmitRequest(mode=pb.SAGA, branches=[branch(forward=pb.Call(target="grpc://there/a.B/\u00e4 C"))]),
        "BAD_TARGET",
        "is no address",
    ),
    (
        pb.SubmitRequest(mode=pb.SAGA, branches=[branch(forward=pb.Call(target="grpc://there"))]),
        "BAD_TARGET",
        "is not grpc://HOST:PORT/PACKAGE.SERVICE/METHOD",
    ),
    (
        pb.SubmitRequest(mode=pb.SAGA, branches=[branch(forward=pb.Call(target=GOOD.target, body=b"x" * 65537))]),
        "PAYLOAD_LIMIT",
        "65537 bytes; at most 65536 are taken",
    ),
    (
        pb.SubmitRequest(
            mode=pb.SAGA,
            branches=[branch(str(i), forward=pb.Call(target=GOOD.target, body=b"x" * 65000)) for i in range(9)],
        ),
        "PAYLOAD_LIMIT",
        "at most 524288 are taken",
    ),
    (
        pb.SubmitRequest(mode=pb.SAGA, branches=[branch(str(i)) for i in range(65)]),
        "TOO_MANY_BRANCHES",
        "65 are too many",
    ),
    (
        pb.SubmitRequest(mode=pb.SAGA, branches=[branch()], options=pb.Options(timeout_s=-1)),
        "BAD_TIMEOUT",
        "-1 is out of range",
    ),
    (
        pb.SubmitRequest(mode=pb.TCC, branches=[branch()], options=pb.Options(forward_only=True)),
        "BAD_OPTION",
        "only a saga",
    ),
    (pb.SubmitRequest(mode=pb.SAGA, branches=[branch()], wait_s=61), "BAD_WAIT", "61 is out of range"),
    (
        pb.BeginRequest(mode=pb.MESSAGE, branches=[pb.Branch(name="a", finish=GOOD)]),
        "NO_QUERY",
        "options.query: is missing",
    ),
    (pb.ListRequest(limit=5000), "BAD_LIMIT", "5000 is out of range"),
    (pb.QueryRequest(gid="nobody"), "NO_SUCH_GID", "there is no transaction 'nobody'"),
    (pb.ForceRequest(gid="nobody"), "NO_REASON", "say why"),
]


@pytest.mark.parametrize(("asked", "why", "text"), BAD, ids=[f"{why}-{index}" for index, (_, why, _) in enumerate(BAD)])
async def test_bad_input_is_refused_by_name_and_nothing_is_written(
    shop: World, asked: Any, why: str, text: str
) -> None:
    method = getattr(shop.one.client.stub, type(asked).__name__.removesuffix("Request"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(asked)
    expected = grpc.StatusCode.NOT_FOUND if why == "NO_SUCH_GID" else grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.code(), reason(caught.value)) == (expected, why)
    assert text in (caught.value.details() or "")
    assert not (await shop.one.client.stub.List(pb.ListRequest())).transactions


async def test_a_gid_that_stands_for_something_else_is_refused(shop: World) -> None:
    await purchase(shop, "g").run()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await purchase(shop, "g", price=31).run()
    assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.ALREADY_EXISTS, "GID_REUSED")
    assert held(shop) == BOUGHT
    with pytest.raises(grpc.aio.AioRpcError, match="stands for another transaction"):
        await shop.one.client.tcc("g").__aenter__()


async def test_a_branch_to_a_service_that_may_not_be_called_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    settings = replace(QUICK, services=("*.shop:50051", "127.0.0.1:*"))
    async with replica(f"sqlite:///{tmp_path / 'log.db'}", settings) as one:
        good = branch("a", forward=pb.Call(target="grpc://accounts.shop:50051/s.S/M"))
        bad = branch("b", undo=pb.Call(target="grpc://accounts.shop.evil.example:50051/s.S/M"))
        for asked in (
            one.client.stub.Submit(pb.SubmitRequest(gid="g", mode=pb.SAGA, branches=[good, bad])),
            one.client.stub.Begin(pb.BeginRequest(gid="g", mode=pb.MESSAGE, options=pb.Options(query=bad.undo))),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asked
            assert (caught.value.code(), reason(caught.value)) == (grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_SERVICE")
            assert "*.shop:50051, 127.0.0.1:* may" in str(caught.value.details())
        assert not (await one.client.stub.List(pb.ListRequest())).transactions


async def test_nobody_goes_on_with_a_transaction_of_somebody_else(tmp_path: Path) -> None:
    key = "x-forwarded-client-cert"
    orders = ((key, "By=spiffe://m/ns/shop/sa/transactions;URI=spiffe://m/ns/shop/sa/orders"),)
    other = ((key, "URI=spiffe://m/ns/shop/sa/orders,By=spiffe://m/x;URI=spiffe://m/ns/shop/sa/cart"),)
    async with replica(f"sqlite:///{tmp_path / 'log.db'}", identity_key=key) as one:
        stub = one.client.stub
        begun = await stub.Begin(pb.BeginRequest(gid="g", mode=pb.TCC), metadata=orders)
        assert begun.initiator == "spiffe://m/ns/shop/sa/orders"
        tried = branch("a", finish=pb.Call(target="grpc://h:1/s.S/M"), undo=pb.Call(target="grpc://h:1/s.S/M"))
        tried.ClearField("forward")
        for metadata in (other, ()):  # another service, and one without an identity
            for asked in (
                stub.AddBranch(pb.AddBranchRequest(gid="g", branches=[tried]), metadata=metadata),
                stub.Submit(pb.SubmitRequest(gid="g"), metadata=metadata),
                stub.Abort(pb.AbortRequest(gid="g"), metadata=metadata),
                stub.Begin(pb.BeginRequest(gid="g", mode=pb.TCC), metadata=metadata),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asked
                assert (caught.value.code(), reason(caught.value)) == (
                    grpc.StatusCode.PERMISSION_DENIED,
                    "NOT_YOURS",
                )
        left = await one.client.query("g")
        assert (left.state, list(left.branches)) == (pb.OPEN, [])
        assert (await stub.Abort(pb.AbortRequest(gid="g", wait_s=2), metadata=orders)).state == pb.FAILED


async def test_more_than_it_can_see_to_is_refused(shop: World) -> None:
    async with shop.other(replace(QUICK, name="small", max_open=1)) as small:
        await small.client.tcc("g").__aenter__()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await small.client.tcc("h").__aenter__()
        assert reason(caught.value) == "TOO_MANY_OPEN"


async def test_the_list_goes_page_by_page(shop: World) -> None:
    stub = shop.one.client.stub
    for number in range(5):
        await stub.Begin(pb.BeginRequest(gid=f"g{number}", mode=pb.TCC))
    await stub.Abort(pb.AbortRequest(gid="g0", wait_s=5))
    first = await stub.List(pb.ListRequest(states=[pb.OPEN], limit=3))
    rest = await stub.List(pb.ListRequest(states=[pb.OPEN], limit=3, after=first.next))
    assert [each.gid for each in (*first.transactions, *rest.transactions)] == ["g1", "g2", "g3", "g4"]
    assert (first.next, rest.next) == ("g3", "")


async def test_an_initiator_that_goes_away_during_the_first_write_leaves_a_transaction_that_ends(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, go_on = asyncio.Event(), asyncio.Event()
    create = shop.one.log.create

    async def slow(record: Record) -> bool:
        is_new = await create(record)
        written.set()
        await go_on.wait()
        return is_new

    monkeypatch.setattr(shop.one.log, "create", slow)
    asking = asyncio.create_task(purchase(shop, "g").run())
    await written.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually_async(lambda: no_call_is_served(shop))
    go_on.set()
    await eventually_async(lambda: is_state(shop, "g", "SUCCEEDED"))
    assert held(shop) == BOUGHT


async def no_call_is_served(shop: World) -> bool:
    """Behind this, the server has noticed that the call before was cancelled."""
    with pytest.raises(grpc.aio.AioRpcError):
        await shop.one.client.stub.Query(pb.QueryRequest(gid="no such"), timeout=2)
    return True


async def test_a_first_write_that_was_done_though_the_log_failed_is_found_again(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = shop.one.log.create

    async def ambiguous(record: Record) -> bool:
        await create(record)
        raise LogUnavailable("the connection was lost behind the commit")

    monkeypatch.setattr(shop.one.log, "create", ambiguous)
    asked = pb.SubmitRequest(gid="g", mode=pb.SAGA, branches=purchase(shop, "g")._branches)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await shop.one.client.stub.Submit(asked, timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await eventually_async(lambda: is_state(shop, "g", "SUCCEEDED"))
    assert held(shop) == BOUGHT


async def test_a_replica_restarted_under_its_name_goes_on_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as before:
        tcc = before.one.client.tcc("g")
        await tcc.__aenter__()
        async with before.other(QUICK) as again:  # the same name; the old one is as good as dead

            async def is_mine() -> bool:
                return (await again.client.query("g")).token == 2

            await eventually_async(is_mine, timeout_s=QUICK.session_ttl_s)
