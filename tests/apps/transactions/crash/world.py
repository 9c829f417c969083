"""One run: databases, processes, kills, restarts, and the history that is left."""

import contextlib
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import spawn
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from apps.transactions import outbox
from apps.transactions.audit import (
    Answered,
    Began,
    Closing,
    Delivered,
    Effect,
    Ended,
    Fact,
    InDoubt,
    Logged,
    Opening,
    Published,
    Violation,
    check,
)
from apps.transactions.barrier import prepared
from apps.transactions.coordinator.sql import SqlLog, open_log_engine
from tests.apps.transactions import bank
from tests.apps.transactions.crash import roles
from tests.apps.transactions.crash.roles import Point, Run, roles_of
from tests.postgres import Postgres

TIMEOUT_S: Final = 20.0
_PORTS: Final = 400
_FIRST_PORT: Final = 12_000 + os.getpid() % 50 * _PORTS
_NUMBERS: Final = itertools.count()
MAX_RESTARTS: Final = 20
_CONTEXT: Final = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.apps.transactions.crash.preload"])

_TRIGGERS: Final = """
CREATE TABLE history (seq INTEGER PRIMARY KEY, gid TEXT, state TEXT, token INTEGER);
CREATE TRIGGER made AFTER INSERT ON tx_log BEGIN
  INSERT INTO history (gid, state, token) VALUES (new.gid, new.state, new.token); END;
CREATE TRIGGER changed AFTER UPDATE ON tx_log BEGIN
  INSERT INTO history (gid, state, token) VALUES (new.gid, new.state, new.token); END;
"""


@dataclass(frozen=True, slots=True)
class Result:
    facts: list[Fact]
    violations: list[Violation]
    crossings: list[tuple[str, str, int]]
    """Role, crossing, number, in the order in which they happened."""
    fired: int
    """How many of the points were reached."""


def play(scenario: str, points: Sequence[Point] = (), postgres: Postgres | None = None) -> Result:
    """Run a scenario to its end, with somebody dying at each of the points. Raises AssertionError if it does not end."""
    with _directory() as directory:
        names = roles_of(scenario)
        if any(point.is_pause for point in points):
            names = (*names, roles.SECOND)
        ports = dict(zip(names, _quiet_ports(len(names)), strict=True))
        databases = {name: f"sqlite:///{directory / name}.db" for name in names if name != roles.SECOND}
        if scenario.startswith("xa"):
            assert postgres is not None
            databases |= {name: postgres.borrow() for name in (roles.ACCOUNTS, roles.SHOP)}
        run = Run(directory, scenario, ports, databases, tuple(points))
        _lay(run)
        _see_through(run, names)
        facts = _collect(run)
        trace = [line.split("\t") for line in (directory / "trace").read_text().splitlines()]
        crossings = [(role, crossing, int(number)) for role, crossing, number in trace]
        fired = sum(run.fired(index).exists() for index in range(len(points)))
        if scenario.startswith("xa") and postgres is not None:
            for name in (roles.ACCOUNTS, roles.SHOP):
                postgres.give_back(databases[name])
        return Result(facts, check(facts, limit_s=TIMEOUT_S), crossings, fired)


def points_of(result: Result) -> list[Point]:
    """Everything that was crossed, as a point where its own process dies, and in a participant's place the coordinator too."""
    points: dict[Point, None] = {}
    for role, crossing, number in result.crossings:
        if "session beat" in crossing or "forget" in crossing:
            continue  # by the clock, and not by what is done
        points[Point(role, crossing, number, role)] = None
        if role in (roles.ACCOUNTS, roles.SHOP) and any(each[0] == roles.COORDINATOR for each in result.crossings):
            points[Point(role, crossing, number, roles.COORDINATOR)] = None
    return list(points)


def _quiet_ports(count: int) -> list[int]:
    """Ports that nobody is given while their process is dead: no other run, and no outgoing connection (they get 32768 and up)."""
    found: list[int] = []
    while len(found) < count:
        port = _FIRST_PORT + next(_NUMBERS) % _PORTS
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
    return found


@contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="crash-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _lay(run: Run) -> None:
    for name in run.databases:
        if name == roles.COORDINATOR:
            engine = open_log_engine(run.databases[name], is_synchronous=False)
            SqlLog(engine)
            with sqlite3.connect(run.directory / f"{name}.db") as connection:
                connection.executescript(_TRIGGERS)
        else:
            engine = bank.open_engine(run.databases[name])
            bank.open_bank(engine, roles.OPENING[name])
            outbox.create_tables(engine)
        engine.dispose()


def _see_through(run: Run, names: Sequence[str]) -> None:
    """Start everybody, restart whoever dies, until all is settled; then kill everybody."""
    processes: dict[str, BaseProcess] = {}
    restarts = 0
    end = time.monotonic() + TIMEOUT_S
    try:
        for name in names:
            processes[name] = _start(name, run)
        while not _is_settled(run) or _is_resting(run):
            _wake(run)
            for name, process in processes.items():
                if process.exitcode is not None:
                    restarts += 1
                    assert restarts <= MAX_RESTARTS, f"{name} does not stay alive: {_said(run, name)}"
                    processes[name] = _start(name, run)
            assert time.monotonic() < end, f"not settled within {TIMEOUT_S:g} s: {_why(run)}; {_last_words(run)}"
            multiprocessing.connection.wait([each.sentinel for each in processes.values()], timeout=0.02)
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()


def _last_words(run: Run) -> str:
    words = [f"{role}: {_said(run, role)}" for role in roles_of(run.scenario)]
    for name in ("trace", "answers"):
        path = run.directory / name
        words.append(f"{name}: {path.read_text()[-2000:]}" if path.exists() else "")
    return "\n".join(words)


@functools.cache
def _prepare_fork_server() -> None:
    """Make a fork cost what a fork costs: 2 ms of CPU instead of 100.

    The fork server looks for its preloads on its own path, not on ours, and leaves out in silence what it does not find. And every
    child would run the main program's file, which is pytest's, and needed by nobody.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    whole = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        return {key: value for key, value in whole(name).items() if not key.startswith("init_main")}

    spawn.get_preparation_data = without_main


def _said(run: Run, role: str) -> str:
    path = run.directory / f"{role}.stderr"
    return path.read_text()[-3000:] if path.exists() else ""


def _start(role: str, run: Run) -> BaseProcess:
    _prepare_fork_server()
    process = _CONTEXT.Process(target=roles.start, args=(role, run), daemon=True)
    process.start()
    return process


def _is_resting(run: Run) -> bool:
    """Whether a process that was stopped has not yet done anything since."""
    return run.fired(0).exists() and run.points[0].is_pause and not _has_gone_on(run)


def _has_gone_on(run: Run) -> bool:
    mark = run.directory / "woken"
    return mark.exists() and (run.directory / "trace").read_text().count(f"{run.points[0].victim}\t") > int(
        mark.read_text()
    )


def _wake(run: Run) -> None:
    """Let a process that was stopped go on, once the log shows that another has taken over what it had."""
    mark = run.directory / "woken"
    if not _is_resting(run) or mark.exists():
        return
    log = run.directory / f"{roles.COORDINATOR}.db"
    if _query(log, "SELECT 1 FROM tx_log WHERE token > 1 OR is_over") or not _query(log, "SELECT 1 FROM tx_log"):
        mark.write_text(str((run.directory / "trace").read_text().count(f"{run.points[0].victim}\t")))
        os.kill(int(run.pid_file(run.points[0].victim).read_text()), signal.SIGCONT)


def _is_settled(run: Run) -> bool:
    if not (run.directory / "knows").exists():
        return False
    return not _why(run)


def _why(run: Run) -> str:
    """What is not settled yet."""
    if run.mode == "outbox":
        left = _query(run.directory / f"{roles.INITIATOR}.db", "SELECT event FROM tx_outbox")
        return f"events {left}" if left else ""
    open_ = _query(run.directory / f"{roles.COORDINATOR}.db", "SELECT gid, state FROM tx_log WHERE NOT is_over")
    if open_:
        return f"transactions {open_}"
    doubt = [str(each) for _, each in _in_doubt(run)]
    return f"branches in doubt {doubt}" if doubt else ""


def _query(path: Path, statement: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, timeout=5.0)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def _in_doubt(run: Run) -> list[tuple[str, object]]:
    if run.mode != "xa":
        return []
    found: list[tuple[str, object]] = []
    for role in (roles.ACCOUNTS, roles.SHOP):
        engine = bank.open_engine(run.databases[role])
        found += [(role, each) for each in prepared.in_doubt(engine)]
        engine.dispose()
    return found


def _collect(run: Run) -> list[Fact]:
    facts: list[Fact] = []
    banks = [name for name in run.databases if name != roles.COORDINATOR]
    for name in banks:
        facts += [Opening(holding, "money", amount) for holding, amount in roles.OPENING[name].items()]
    if run.mode != "outbox":
        branches = ("credit",) if run.mode == "message" else ("credit", "debit")
        log = run.directory / f"{roles.COORDINATOR}.db"
        if not run.scenario.endswith("-alone") or _query(
            log, "SELECT gid FROM tx_log"
        ):  # else it may have died too early
            facts.append(Began(run.gid, run.mode, branches, 0.0))
        history = _query(log, "SELECT gid, state, token FROM history ORDER BY seq")
        facts += [Logged(str(gid), str(state), int(str(token))) for gid, state, token in history]
        facts += [Ended(str(gid), str(state), 0.0) for gid, state in _query(log, "SELECT gid, state FROM tx_log")]
    answers = run.directory / "answers"
    if answers.exists():
        for line in answers.read_text().splitlines():
            gid, branch, op, code, reply = line.split("\t")
            is_empty = op in ("compensate", "cancel", "rollback") and reply == ""
            facts.append(Answered(gid, branch, op, code, reply, is_empty))
    for name in banks:
        engine = bank.open_engine(run.databases[name])
        for gid, branch, op, holding, free, frozen in bank.ledger(engine):
            facts.append(Effect(gid, branch, op, holding, free, frozen))
            if branch == outbox.BRANCH:
                facts.append(Delivered(gid))
        if run.mode == "outbox" and name == roles.INITIATOR:
            paid = [row for row in bank.ledger(engine) if row[3] == "purse"]
            facts += [Published(f"e{number}", "k") for number in range(len(paid))]
        facts += [Closing(holding, *held) for holding, held in bank.holdings(engine).items()]
        engine.dispose()
    return facts + [InDoubt(each.gid, each.branch) for _, each in _in_doubt(run)]  # type: ignore[attr-defined]
