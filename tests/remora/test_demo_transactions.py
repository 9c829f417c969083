"""The transactions demo: its exit code says whether everything is there; and it leaves nothing behind."""

import os
import signal
from pathlib import Path

import pytest

from remora.agent.child import tree
from remora.demo.transactions import Reckoning, cents, ways_of
from tests.mesh import is_alive
from tests.remora.test_demo import demo, is_nothing_left
from tests.waiting import eventually

SHORT = ("--chaos", "--small", "--for", "8s")


def run(directory: Path, way: str, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; no process is left, and no file unless there is something to look into."""
    with demo(directory, "--transactions", way, *words) as process:
        process.until("shoppers buy", "out")
        pids = tree(process.pid)
        code = process.wait(240)
    assert not [pid for pid in pids if is_alive(pid)]
    assert code or is_nothing_left(directory, [])
    return code, process.out, process.err


@pytest.mark.slow
@pytest.mark.parametrize("way", ["saga", "tcc", "outbox", "xa"])
def test_whoever_is_killed_money_and_books_are_all_there(tmp_path: Path, way: str) -> None:
    code, out, err = run(tmp_path, way, *SHORT)
    assert code == 0, out + err
    assert "kill -9" in out
    assert out.splitlines()[-1] == f"all {1 if way == 'outbox' else 2} expectations held"
    assert way == "outbox" or "transactions, 0 violations" in out


@pytest.mark.slow
def test_faults_may_come_from_outside_too(tmp_path: Path) -> None:
    with demo(tmp_path, "--transactions", "saga", "--small", "--for", "15s") as process:
        process.until("shoppers buy", "out")
        for words in ("remora up", "apps.bookstore.accounts", "apps.transactions.coordinator"):
            pids = [pid for pid in tree(process.pid) if words in command(pid)]
            assert pids
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        code = process.wait(240)
    assert code == 0, process.out + process.err
    assert process.out.count("starting it again") >= 3


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_the_naive_way_is_seen_to_lose_money(tmp_path: Path) -> None:
    """Nobody has to be killed for it: the bank lies."""
    code, out, _ = run(tmp_path, "naive", "--small", "--for", "15s")
    assert code == 1, out
    assert "NOT SO: naive: money expected = money found" in out
    assert "WRONG" in out, "while it happens, not only in the end"


def test_ctrl_c_ends_the_demo_with_its_database(tmp_path: Path) -> None:
    with demo(tmp_path, "--transactions", "xa", "--small") as process:
        process.until("xa: prepare", "out")
        eventually(lambda: len(tree(process.pid)) > 6)
        pids = tree(process.pid)
        process.send(signal.SIGINT)
        assert process.wait(60) == 130
    assert is_nothing_left(tmp_path, pids)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--transactions", "hope"), '--transactions: "hope" is not known; known: saga, tcc, outbox, xa, naive, all'),
        (("--chaos",), "--chaos and --small go with --transactions only"),
        (("--transactions", "saga", "--engine", "nginx"), '--engine: "nginx" is not known'),
    ],
)
def test_what_cannot_be_shown_is_said_at_once(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    with demo(tmp_path, *words) as process:
        assert process.wait(30) == 2
    assert text in process.err


def test_all_means_the_naive_way_too() -> None:
    assert ways_of("all") == ("saga", "tcc", "outbox", "xa", "naive")


def test_a_count_adds_up_only_if_nothing_is_missing_and_nothing_is_wrong() -> None:
    said = {
        "money_cents": {"expected": 100_00, "found": 100_00},
        "stock": {"expected": 8, "found": 8},
        "orders": {"SETTLED": 3, "PENDING": 1, "TAKEN": 1, "REJECTED": 2},
        "wrong": [],
    }
    assert Reckoning.of(said).adds_up
    assert Reckoning.of(said).open_orders == 2
    assert not Reckoning.of({**said, "stock": {"expected": 8, "found": 7}}).adds_up
    assert not Reckoning.of({**said, "wrong": ["order x: 2 copies taken, 1 bought"]}).adds_up


def test_money_is_written_as_people_do() -> None:
    assert [cents(each) for each in (0, 5, -1234567)] == ["0.00", "0.05", "-12,345.67"]
