"""`python -m benchmarks.transactions`: measure, show, write down."""

import asyncio
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import psycopg
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.processes import ROOT, Processes, find, free_port
from benchmarks.transactions import measure, ways
from benchmarks.transactions.coordinators import Coordinator, Dtm, Ours, Place, schema
from benchmarks.transactions.report import aims, page
from remora.demo import postgres

ROUNDS: Final = 3
SECONDS: Final = 8.0
QUICK_SECONDS: Final = 2.0
MODES: Final = ("saga", "tcc")
OUTPUT: Final = ROOT / "docs" / "benchmarks" / "transactions.md"
PARTS: Final = ("coordinators", "recovery", "ways")

notices = Console(stderr=True, soft_wrap=True)


def main(
    parts: Annotated[
        list[str] | None, typer.Argument(metavar="PART…", help=f"Of {', '.join(PARTS)}; all if none.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short: about a minute.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the coordinators, in turn.")] = ROUNDS,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write the page; docs/benchmarks/transactions.md after a full run."),
    ] = None,
) -> None:
    """What a transaction costs: our coordinator beside DTM's, recovery, and the bookstore's five ways."""
    chosen = parts or list(PARTS)
    for each in chosen:
        if each not in PARTS:
            raise typer.BadParameter(f'"{each}" is none of {", ".join(PARTS)}')
    run = asyncio.run(_run(chosen, 1 if quick else rounds, QUICK_SECONDS if quick else SECONDS))
    for table in _tables(run):
        Console().print(table)
    is_whole = not quick and len(chosen) == len(PARTS)
    where = output or (OUTPUT if is_whole else None)
    if where is not None:
        where.write_text(page(run))
        notices.print(f"written: {where}")


async def _run(parts: list[str], rounds: int, seconds: float) -> dict[str, Any]:
    run: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(),
        "rounds": rounds,
        "seconds": seconds,
        "samples": {},
        "recovery_s": [],
        "ways": {},
        "missing": [],
    }
    others = machine.OthersCpu()
    database_port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": str(database_port), "fsync": "on", "max_connections": "700"}
    names = (*(f"{each}" for each in ways.SERVICES), Ours.database, Dtm.database)
    with tempfile.TemporaryDirectory(prefix="remora-bench-") as scratch, Processes(Path(scratch)) as processes:
        async with postgres.running(names, settings) as url:
            if "coordinators" in parts:
                await _coordinators(run, processes, database_port, rounds, seconds)
            if "recovery" in parts:
                for _ in range(rounds):
                    took = await measure.recovery(processes, _place(database_port))
                    notices.print(f"recovery of {measure.RECOVERED} open sagas: {took:.2f} s")
                    run["recovery_s"].append(took)
            if "ways" in parts:
                for name in ways.WAYS:
                    directory = Path(scratch) / name
                    directory.mkdir()
                    found = await ways.way(processes, name, directory, url if name == "xa" else "", seconds)
                    notices.print(f"{name}: {found}", highlight=False)
                    run["ways"][name] = asdict(found)
    run["machine"]["others"] = f"{others.cores():.2f}"
    return run


def _place(database_port: int, participant: int = 0) -> Place:
    return Place(participant, database_port, free_port(), free_port(), free_port())


async def _coordinators(
    run: dict[str, Any], processes: Processes, database_port: int, rounds: int, seconds: float
) -> None:
    subjects: list[Coordinator] = [Ours()]
    if find("dtm"):
        subjects.append(Dtm())
        with psycopg.connect(f"host=127.0.0.1 port={database_port} user=postgres dbname={Dtm.database}") as connection:
            connection.execute(schema(Dtm.name).encode())
    else:
        run["missing"].append("DTM: it is not built; `make bench-transactions` builds it where there is Go")
    port = free_port()
    _, rest = measure.cores()
    participant = processes.start([sys.executable, "-m", "benchmarks.transactions.participant", str(port)], rest)
    participant.await_port(port)
    for _ in range(rounds):
        for mode in MODES:
            for subject in subjects:
                found = await measure.sample(processes, subject, mode, _place(database_port, port), seconds)
                notices.print(f"{subject.name} {mode}: {found}", highlight=False)
                run["samples"].setdefault(f"{subject.name} {mode}", []).append(asdict(found))
    processes.stop([participant])


def _tables(run: dict[str, Any]) -> list[Table]:
    table = Table(title="coordinators: median of the rounds", title_justify="left")
    for heading in ("", "per s", "p50 ms", "p99 ms", "CPU ms", "waits for the disk"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, samples in run["samples"].items():
        cells = (f"{median(each[key] for each in samples):.2f}" for key in samples[0])
        table.add_row(name, *cells)
    verdicts = Table(title="aims", title_justify="left")
    for heading in ("aim", "measured", ""):
        verdicts.add_column(heading)
    for text, measured, reached in aims(run):
        verdicts.add_row(text, measured, "[green]reached[/]" if reached else "[red]not reached[/]")
    return [table, verdicts]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(app())
