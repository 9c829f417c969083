"""`python -m benchmarks`: measure, show, write down."""

import json
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import machine, report
from benchmarks.command import EXIT_INTERRUPTED, choose, finish, interrupt, notices, progress_columns
from benchmarks.fleet import Fleet
from benchmarks.measure import METRICS
from benchmarks.processes import ROOT, Processes
from benchmarks.proxies import PROXIES
from benchmarks.report import OTHERS_CORES, Document
from benchmarks.rows import ROWS, Row
from benchmarks.run import Result, measure, usable_ways, waits_for_us

OUTPUT: Final = ROOT / "docs" / "benchmarks"
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 2
QUICK_SCALE: Final = 0.25

data = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)


def main(
    rows: Annotated[
        list[str] | None, typer.Argument(metavar="ROW…", help="Rows to measure; all if none is named.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and calls: about three minutes.")] = False,
    rounds: Annotated[int, typer.Option(min=0, help=f"Rounds; {ROUNDS}, or {QUICK_ROUNDS} with --quick.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0.0, help="Calls, in proportion to the usual number; 0 leaves the choice.")
    ] = 0.0,
    peers: Annotated[str, typer.Option(metavar="NAME,NAME", help="Only these ways.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the run here too.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where JSON, plots and page go; docs/benchmarks after a run of all rows."),
    ] = None,
) -> None:
    """CPU per call, latency, throughput, memory and start time of the sidecar beside its peers, interleaved in one run."""
    chosen = tuple(choose(rows or [], {row.name: row for row in ROWS}))
    names = [name for name in peers.split(",") if name]
    for name in names:
        if name not in PROXIES:
            raise typer.BadParameter(f'"{name}" is none of {", ".join(PROXIES)}')
    is_whole = len(chosen) == len(ROWS) and not names
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run = _run(
            chosen, names, rounds or (QUICK_ROUNDS if quick else ROUNDS), scale or (QUICK_SCALE if quick else 1.0)
        )
    except KeyboardInterrupt:
        notices.print("[bold]bench: interrupted; all processes that it started have ended[/]")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _show_aims(run)
    if json_file is not None:
        json_file.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    folder = output or (OUTPUT if is_whole else None)
    if folder is not None:
        report.write(run, folder)
        notices.print(f"written: {folder}/README.md, latest.json and the plots")
        if folder == OUTPUT and not report.update_front_page(run, ROOT / "README.md"):
            notices.print("[yellow]README.md has no place for the figures[/]")
    finish(run)


def _run(rows: tuple[Row, ...], names: list[str], rounds: int, scale: float) -> Document:
    missing = {
        name: why for name, proxy in PROXIES.items() if (not names or name in names) and (why := proxy.missing())
    }
    for name, why in missing.items():
        notices.print(f"[bold red]NOT MEASURED: {name}: {why}[/]", highlight=False)
    facts = machine.describe()
    others = machine.OthersCpu()
    versions = machine.versions()
    results: list[Result] = []
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    with (
        tempfile.TemporaryDirectory(prefix="remora-bench-") as scratch,
        Processes(Path(scratch)) as processes,
        Progress(*progress_columns(), console=notices, transient=True) as progress,
    ):
        fleet = Fleet(processes)
        plan = []
        for row in rows:
            ways = usable_ways(row, missing, names)
            if waits_for_us(row) and len(rows) > 1:
                missing[row.name] = "the sidecar does not speak TLS to its clients yet"
                notices.print(f"[yellow]left out: {row.name}: {missing[row.name]}[/]", highlight=False)
            elif ways:
                plan.append((row, ways))
        steps = sum(len(ways) * (rounds + (0 if row.is_fresh else 1)) for row, ways in plan)
        task = progress.add_task("", total=steps)
        for row, ways in plan:

            def on_step(label: str, row: Row = row) -> None:
                progress.update(task, advance=1, description=f"{row.name} {label}")

            result = measure(fleet, row, ways, rounds=rounds, scale=scale, on_step=on_step)
            results.append(result)
            _show_row(
                report.document([result], date=date, machine={}, versions={}, missing={}, rounds=rounds, scale=scale)
            )
    facts["others"] = f"{others.cores():.2f}"
    if others.cores() > OTHERS_CORES:
        notices.print(
            f"[bold red]OTHER PROGRAMS USED {others.cores():.1f} CORES MEANWHILE: latency and throughput are not worth much[/]"
        )
    return report.document(
        results, date=date, machine=facts, versions=versions, missing=missing, rounds=rounds, scale=scale
    )


def _show_row(run: Document) -> None:
    """A row as soon as it is measured."""
    row = run["rows"][0]
    for metric in row["figures"]:
        known = METRICS[metric]
        cells = [
            f"{label} {report.cell(row, label, metric)}"
            for label in report.labels(row)
            if report.figures(row, label, metric)
        ]
        note = f", {row['note']}" if row["note"] else ""
        data.print(f"[bold]{row['name']}[/] {known.title}, {known.unit}{note}: " + " · ".join(cells), highlight=False)


def _show_aims(run: Document) -> None:
    table = Table(title="aims: ratio, median (lowest–highest) of the rounds", title_justify="left")
    for heading in ("aim", "of", "to", "limit", "measured", ""):
        table.add_column(heading)
    for aim, middle, low, high, reached in report.verdicts(run):
        if middle is not None:
            word = "[green]reached[/]" if reached else "[red]not reached[/]"
            table.add_row(
                aim.title, aim.subject, aim.against, report.limit(aim), f"{middle:.2f} ({low:.2f}–{high:.2f})", word
            )
    if table.row_count:
        data.print(table)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(app())
