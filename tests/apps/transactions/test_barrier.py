"""What the barrier promises, on SQLite and on PostgreSQL."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy import Engine

from apps.transactions.barrier import Contradiction, Refused, core, create_tables, mark, run
from apps.transactions.barrier.core import Answer, Outcome
from apps.transactions.context import BranchCall, Op
from tests.apps.transactions import bank
from tests.apps.transactions.bank import holdings, ledger, open_bank, open_engine

DEBIT = bank.request("reader", -30)


@pytest.fixture
def shop(engine: Engine) -> Engine:
    open_bank(engine, {"reader": 100})
    return engine


def do(engine: Engine, op: Op, work: bank.Work, body: bytes = DEBIT, gid: str = "g") -> Answer:
    call = BranchCall(gid, "b", op)
    with engine.begin() as connection:
        return run(connection, call, lambda: work(connection, call, body))


def reason(answer: Answer) -> str:
    info = error_details_pb2.ErrorInfo()
    status = status_pb2.Status.FromString(answer.reply)
    return info.reason if any(each.Unpack(info) for each in status.details) else ""


def test_a_repetition_does_nothing_and_gets_the_first_reply(shop: Engine) -> None:
    first = do(shop, Op.ACTION, bank.move)
    other = do(shop, Op.ACTION, bank.move, bank.request("reader", -5), gid="other")
    again = do(shop, Op.ACTION, bank.move)
    assert (first.outcome, first.reply, first.is_repeat) == (Outcome.DONE, b'{"left": 70}', False)
    assert (again.outcome, again.reply, again.is_repeat) == (Outcome.DONE, b'{"left": 70}', True)
    assert other.reply == b'{"left": 65}'
    assert holdings(shop) == {"reader": (65, 0)}


def test_a_refusal_stays_a_refusal_even_if_it_would_now_be_possible(shop: Engine) -> None:
    too_much = bank.request("reader", -130)
    first = do(shop, Op.ACTION, bank.move, too_much)
    do(shop, Op.ACTION, bank.move, bank.request("reader", 1000), gid="payday")
    again = do(shop, Op.ACTION, bank.move, too_much)
    assert (first.outcome, reason(first)) == (Outcome.REFUSED, "TOO_LITTLE")
    assert (again.reply, again.is_repeat) == (first.reply, True)
    assert holdings(shop) == {"reader": (1100, 0)}


def test_a_refusal_takes_back_what_the_work_wrote_before_it(shop: Engine) -> None:
    def half(connection: object, call: BranchCall | None, body: bytes) -> bytes:
        bank.move(connection, call, body)  # type: ignore[arg-type]
        raise Refused("second thoughts")

    assert do(shop, Op.ACTION, half).outcome is Outcome.REFUSED
    assert (holdings(shop), ledger(shop)) == ({"reader": (100, 0)}, [])


def test_a_failure_leaves_nothing_so_that_a_repetition_can_do_it(shop: Engine) -> None:
    def crash(connection: object, call: BranchCall | None, body: bytes) -> bytes:
        bank.move(connection, call, body)  # type: ignore[arg-type]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        do(shop, Op.ACTION, crash)
    assert holdings(shop) == {"reader": (100, 0)}
    assert do(shop, Op.ACTION, bank.move).is_repeat is False
    assert holdings(shop) == {"reader": (70, 0)}


@pytest.mark.parametrize(("forward", "undo"), [(Op.ACTION, Op.COMPENSATE), (Op.TRY, Op.CANCEL)])
def test_an_undo_without_its_origin_changes_nothing_and_keeps_the_origin_out(
    shop: Engine, forward: Op, undo: Op
) -> None:
    assert do(shop, undo, bank.move_back).outcome is Outcome.EMPTY
    late = do(shop, forward, bank.move)
    assert (late.outcome, reason(late)) == (Outcome.BLOCKED, "HANGING")
    assert do(shop, undo, bank.move_back).outcome is Outcome.EMPTY
    assert (holdings(shop), ledger(shop)) == ({"reader": (100, 0)}, [])


def test_an_undo_takes_back_once(shop: Engine) -> None:
    do(shop, Op.ACTION, bank.move)
    first, again = do(shop, Op.COMPENSATE, bank.move_back), do(shop, Op.COMPENSATE, bank.move_back)
    assert (first.outcome, again.outcome, again.is_repeat) == (Outcome.DONE, Outcome.DONE, True)
    assert holdings(shop) == {"reader": (100, 0)}


def test_the_undo_of_a_refused_try_is_empty(shop: Engine) -> None:
    do(shop, Op.TRY, bank.reserve, bank.request("reader", -130))
    assert do(shop, Op.CANCEL, bank.cancel, bank.request("reader", -130)).outcome is Outcome.EMPTY
    assert holdings(shop) == {"reader": (100, 0)}


def test_a_try_is_confirmed_or_cancelled_and_never_both(shop: Engine) -> None:
    do(shop, Op.TRY, bank.reserve)
    assert holdings(shop) == {"reader": (70, 30)}
    do(shop, Op.CONFIRM, bank.confirm)
    with pytest.raises(Contradiction, match="finished already"):
        do(shop, Op.CANCEL, bank.cancel)
    do(shop, Op.TRY, bank.reserve, gid="h")
    do(shop, Op.CANCEL, bank.cancel, gid="h")
    with pytest.raises(Contradiction, match="nothing to finish"):
        do(shop, Op.CONFIRM, bank.confirm, gid="h")
    assert holdings(shop) == {"reader": (70, 0)}


def test_what_was_never_tried_is_not_confirmed(shop: Engine) -> None:
    with pytest.raises(Contradiction) as caught:
        do(shop, Op.CONFIRM, bank.confirm)
    assert caught.value.reason == core.NEVER_DONE
    assert do(shop, Op.TRY, bank.reserve).outcome is Outcome.DONE, "the wrong confirm left nothing behind"


def test_only_what_moves_forward_can_be_refused(shop: Engine) -> None:
    do(shop, Op.ACTION, bank.move)

    def unwilling(connection: object, call: BranchCall | None, body: bytes) -> bytes:
        raise Refused("no")

    with pytest.raises(Refused):
        do(shop, Op.COMPENSATE, unwilling)
    assert do(shop, Op.COMPENSATE, bank.move_back).outcome is Outcome.DONE


def test_a_reply_over_the_limit_fails_the_call_and_nothing_is_written(shop: Engine) -> None:
    def verbose(connection: object, call: BranchCall | None, body: bytes) -> bytes:
        bank.move(connection, call, body)  # type: ignore[arg-type]
        return b"x" * (core.MAX_REPLY_BYTES + 1)

    with pytest.raises(core.ReplyTooLarge):
        do(shop, Op.ACTION, verbose)
    assert holdings(shop) == {"reader": (100, 0)}


def test_an_initiator_that_was_asked_too_early_cannot_commit_any_more(shop: Engine) -> None:
    with shop.begin() as connection:
        assert mark(connection, "g") is True
    with shop.begin() as connection:
        assert mark(connection, "g") is False
        assert core.was_marked(connection, "g") is True
        assert core.was_marked(connection, "h") is False
    with shop.begin() as connection, pytest.raises(Refused):
        mark(connection, "h")


def test_rows_older_than_any_repetition_are_forgotten(shop: Engine) -> None:
    do(shop, Op.ACTION, bank.move)
    with shop.begin() as connection:
        assert core.forget(connection, before=0.0) == 0
        assert core.forget(connection, before=4e9) == 1


# Try racing cancel (and both repeated): whoever wins, the reader has all of the money or the reservation is gone.


def race(engine: Engine, gid: str, seed: int) -> None:
    dice = random.Random(seed)
    calls: list[tuple[Op, bank.Work]] = [(Op.TRY, bank.reserve), (Op.CANCEL, bank.cancel)]
    calls += dice.choices(calls, k=dice.randint(0, 2))
    dice.shuffle(calls)
    start = threading.Barrier(len(calls))

    def one(op: Op, work: bank.Work, spin: int) -> tuple[Op, Answer]:
        start.wait()
        for _ in range(spin):
            pass
        return op, do(engine, op, work, gid=gid)

    with ThreadPoolExecutor(len(calls)) as threads:
        running = [threads.submit(one, op, work, dice.randrange(20_000)) for op, work in calls]
        answers = [each.result() for each in running]
    assert holdings(engine) == {"reader": (100, 0)}, f"seed {seed}"
    of_this = [row[2] for row in ledger(engine) if row[0] == gid]
    assert of_this in ([], ["try", "cancel"]), f"seed {seed}: {of_this}"
    for op in (Op.TRY, Op.CANCEL):
        replies = {(answer.outcome, answer.reply) for asked, answer in answers if asked is op}
        # A cancel after a try that was done says DONE; a repetition of it too. A try may be answered before it is undone.
        settled = {outcome for outcome, _ in replies} - {Outcome.UNDONE, Outcome.DONE}
        assert len(settled) <= 1, f"seed {seed}: {replies}"


def test_a_try_that_races_its_cancel_leaves_nothing_reserved(shop: Engine) -> None:
    for seed in range(60):
        race(shop, f"race-{seed}", seed)


@pytest.mark.slow
def test_a_try_that_races_its_cancel_leaves_nothing_reserved_in_1000_seeds(shop: Engine) -> None:
    for seed in range(1000):
        race(shop, f"race-{seed}", seed)


def test_processes_may_create_the_tables_at_once(url: str) -> None:
    engines = [open_engine(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(create_tables, engines))
    for engine in engines:
        engine.dispose()


def test_an_unknown_kind_of_database_is_named(tmp_path: Path) -> None:
    class Strange:
        class dialect:
            name = "oracle"

    with pytest.raises(ValueError, match="sqlite and postgresql, not oracle"):
        run(Strange(), BranchCall("g", "b", Op.TRY), lambda: b"")  # type: ignore[arg-type]
