"""`remora tx` against a real coordinator and real participants."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from apps.transactions.client import RolledBack
from proto.transactions.v1 import coordinator_pb2 as pb
from tests.apps.transactions.bank import request
from tests.apps.transactions.live import World, world
from tests.ports import free_ports
from tests.waiting import eventually_async

GONE = "grpc://127.0.0.1:1/bank.Bank/Move"


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def remora(shop: World | None, *words: str, coordinator: str = "") -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    target = coordinator or (shop.one.target if shop is not None else "")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "remora", "tx", *words),
        *(("--coordinator", target) if target else ()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def saga(shop: World, gid: str, price: int = 30, *, till: str = "") -> Any:
    made = shop.one.client.saga(gid)
    made.step("take", shop.warehouse.url("Move"), request("books", -1), undo=shop.warehouse.url("MoveBack"))
    made.step("debit", shop.accounts.url("Move"), request("reader", -price), undo=shop.accounts.url("MoveBack"))
    return made.step("credit", till or shop.accounts.url("Move"), request("till", price), undo=None)


async def test_a_transaction_is_listed_and_shown_with_what_happened_to_it(shop: World) -> None:
    await saga(shop, "good").run()
    with pytest.raises(RolledBack):
        await saga(shop, "poor", price=130).run()
    code, out, _ = await remora(shop, "list")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert [line[:4] for line in lines[1:]] == [["good", "SAGA", "SUCCEEDED", "3/3"], ["poor", "SAGA", "FAILED", "2/3"]]
    code, out, err = await remora(shop, "show", "poor")
    assert code == 0
    assert err.startswith("poor: SAGA, FAILED (debit: ABORTED: reader has too little)")
    happened = [line.split()[2:4] for line in out.splitlines() if line.startswith("+")]
    assert ["call", "take/action"] in happened
    assert happened.index(["refused", "debit/action"]) < happened.index(["call", "take/compensate"])
    assert happened[-1][:2] == ["all", "undone"]


async def test_programs_get_json(shop: World) -> None:
    await saga(shop, "good").run()
    code, out, _ = await remora(shop, "show", "good", "-o", "json")
    found = json.loads(out)
    assert (code, found["state"], found["mode"]) == (0, "SUCCEEDED", "SAGA")
    assert [each["state"] for each in found["branches"]] == ["DONE"] * 3
    assert [each["at"] for each in found["events"]] == sorted(each["at"] for each in found["events"])
    code, out, _ = await remora(shop, "list", "--state", "failed", "-o", "json")
    assert json.loads(out) == {"transactions": []}


async def test_the_graph_is_a_picture(shop: World) -> None:
    await saga(shop, "good").run()
    code, out, _ = await remora(shop, "graph", "good")
    assert (code, out.splitlines()) == (
        0,
        [
            "flowchart LR",
            '    b0["take: DONE"]',
            '    b1["debit: DONE"]',
            "    b0 --> b1",
            '    b2["credit: DONE"]',
            "    b1 --> b2",
        ],
    )


async def test_what_hangs_is_found_and_ended_by_hand(shop: World) -> None:
    asking = asyncio.create_task(saga(shop, "stuck", till=GONE).run())

    async def is_dead() -> bool:
        return (await shop.one.client.query("stuck")).is_dead_letter

    async def is_there() -> bool:
        return bool((await shop.one.client.stub.List(pb.ListRequest())).transactions)

    await eventually_async(is_there)
    await eventually_async(is_dead)
    code, out, err = await remora(shop, "audit")
    assert code == 1
    assert "SAGA  RUNNING" in out
    assert "wrong: stuck: a dead letter" in err
    assert (await remora(shop, "list", "--dead"))[1].count("stuck") == 1
    assert (await remora(shop, "retry", "stuck"))[0] == 0
    code, _, err = await remora(shop, "abort", "stuck")
    assert (code, "is running: it cannot be taken back" in err) == (1, True)
    code, _, err = await remora(shop, "force", "stuck", "--reason", "paid in cash; ann")
    assert (code, err) == (0, "stuck: SUCCEEDED\n")
    code, _, err = await remora(shop, "audit")
    assert (code, "ended by forced: paid in cash; ann" in err) == (1, True), "what a person did stays in sight"
    await asyncio.gather(asking, return_exceptions=True)


async def test_an_undecided_transaction_is_taken_back(shop: World) -> None:
    await shop.one.client.stub.Begin(pb.BeginRequest(gid="open", mode=pb.TCC))
    assert (await remora(shop, "abort", "open", "--reason", "bored"))[::2] == (0, "open: FAILED\n")
    assert (await remora(shop, "audit"))[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("show", "nobody"), 1, "remora: there is no transaction 'nobody'"),
        (("list", "--state", "lost"), 2, 'remora: --state: "lost" is no state; one of OPEN'),
        (("audit", "--older", "soon"), 2, "--older"),
        (("list", "--limit", "0"), 2, "greater than or equal to 1"),
    ],
)
async def test_what_cannot_be_is_said_in_one_line(shop: World, words: tuple[str, ...], code: int, text: str) -> None:
    got, out, err = await remora(shop, *words)
    assert (got, out) == (code, "")
    assert text in err
    assert err.count("\n") == 1


async def test_a_coordinator_that_is_not_there_is_named() -> None:
    target = f"127.0.0.1:{free_ports(1)[0]}"
    code, _, err = await remora(None, "list", coordinator=target)
    assert (code, f"the coordinator at {target} cannot be reached" in err) == (3, True)
