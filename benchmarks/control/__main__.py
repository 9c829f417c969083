"""`python -m benchmarks.control`: measure, show, write down."""

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

from benchmarks import machine
from benchmarks.command import EXIT_INTERRUPTED, choose, finish, interrupt, notices, progress_columns
from benchmarks.control import report
from benchmarks.control.measure import METRICS, Bench, Plan, Result, by_setup, steps
from benchmarks.control.planes import build_goplane, go_version
from benchmarks.control.report import Document
from benchmarks.control.rows import ROWS, WAYS, Row
from benchmarks.processes import ROOT, Processes

OUTPUT: Final = ROOT / "docs" / "benchmarks"
ROUNDS: Final = 3
QUICK_ROUNDS: Final = 2
QUICK_SCALE: Final = 0.1
SIMULATORS: Final = 2
OTHERS_CORES: Final = 0.2
"""Used by other programs: from here on the run says so loudly."""

data = Console(soft_wrap=True)


def main(
    rows: Annotated[
        list[str] | None, typer.Argument(metavar="ROW…", help="Rows to measure; all if none is named.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of everything: about two minutes.")] = False,
    rounds: Annotated[int, typer.Option(min=0, help=f"Rounds; {ROUNDS}, or {QUICK_ROUNDS} with --quick.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0.0, help="Streams, services and changes, in proportion; 0 leaves the choice.")
    ] = 0.0,
    ways: Annotated[str, typer.Option(metavar="NAME,NAME", help=f"Only these of {', '.join(WAYS)}.")] = "",
    simulators: Annotated[
        int, typer.Option(min=1, help="Processes that the nodes of a control plane share.")
    ] = SIMULATORS,
    client: Annotated[str, typer.Option(help="What the nodes use: `frames` (cheap) or `grpcio`.")] = "frames",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the run here too.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where JSON, plots and page go; docs/benchmarks after a run of all rows."),
    ] = None,
) -> None:
    """From a change to the last node's ACK: the control plane beside go-control-plane, interleaved in one run."""
    wanted = choose(rows or [], {row.name: row for row in ROWS})
    chosen = tuple(row for row in ROWS if row in wanted)
    names = [name for name in ways.split(",") if name] or list(WAYS)
    for name in names:
        if name not in WAYS:
            raise typer.BadParameter(f'"{name}" is none of {", ".join(WAYS)}')
    if client not in ("frames", "grpcio"):
        raise typer.BadParameter(f'"{client}" is neither frames nor grpcio')
    is_whole = len(chosen) == len(ROWS) and names == list(WAYS) and not quick and not scale
    plan = Plan(
        rounds or (QUICK_ROUNDS if quick else ROUNDS), scale or (QUICK_SCALE if quick else 1.0), simulators, client
    )
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run = _run(chosen, names, plan)
    except KeyboardInterrupt:
        notices.print("[bold]bench-control: interrupted; all processes that it started have ended[/]")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _show_aims(run)
    if json_file is not None:
        json_file.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    folder = output or (OUTPUT if is_whole else None)
    if folder is not None:
        report.write(run, folder)
        notices.print(f"written: {folder}/control.md, control.json and the plots")
    finish(run)


def _run(rows: tuple[Row, ...], names: list[str], plan: Plan) -> Document:
    missing: dict[str, str] = {}
    if any(name.startswith("go/") for name in names) and (why := build_goplane()):
        missing["go-control-plane"] = why
        names = [name for name in names if not name.startswith("go/")]
    facts = machine.describe()
    versions = machine.versions()
    versions = {name: versions[name] for name in ("remora", "python", "uvloop", "grpcio") if name in versions}
    if "go-control-plane" not in missing:
        versions["go-control-plane"] = go_version()
    others = machine.OthersCpu()
    results: list[Result] = []
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    with (
        tempfile.TemporaryDirectory(prefix="remora-bench-") as scratch,
        Processes(Path(scratch)) as processes,
        Progress(*progress_columns(), console=notices, transient=True) as progress,
    ):
        task = progress.add_task("", total=steps(rows, names, plan.rounds))

        def on_step(text: str) -> None:
            progress.update(task, advance=1, description=text)

        def on_row(result: Result) -> None:
            _set_aside(result, missing)
            _show_row(report.document([result], plan, date=date, machine={}, versions={}, missing={})["rows"][0])

        bench = Bench(processes, plan, on_step, on_row)
        for setup, of_setup in by_setup(rows):
            results += bench.setup(setup, of_setup, names)
    facts["others"] = f"{others.cores():.2f}"
    for name, why in missing.items():
        notices.print(f"[bold red]NOT MEASURED: {name}: {why}[/]", highlight=False)
    if others.cores() > OTHERS_CORES:
        notices.print(
            f"[bold red]OTHER PROGRAMS USED {others.cores():.1f} CORES MEANWHILE: times are not worth much[/]"
        )
    return report.document(results, plan, date=date, machine=facts, versions=versions, missing=missing)


def _set_aside(result: Result, missing: dict[str, str]) -> None:
    """A variant that a control plane does not speak is no failure, but said."""
    for way, why in list(result.errors.items()):
        if "UNIMPLEMENTED" in why:
            missing[way] = "this control plane does not speak it"
            del result.errors[way]


def _show_row(row: Document) -> None:
    """A row as soon as it is measured."""
    for metric in row["figures"]:
        known = METRICS[metric]
        cells = [f"{way} {report.cell(row, way, metric)}" for way in WAYS if way in row["samples"]]
        if cells:
            unit = f", {known.unit}" if known.unit else ""
            data.print(f"[bold]{row['name']}[/] {known.title}{unit}: " + " · ".join(cells), highlight=False)


def _show_aims(run: Document) -> None:
    table = Table(title="aims: median (lowest–highest) of the rounds", title_justify="left")
    for heading in ("aim", "of", "to", "limit", "measured", ""):
        table.add_column(heading)
    for aim, values, reached in report.verdicts(run):
        if values:
            word = {True: "[green]reached[/]", False: "[red]not reached[/]", None: ""}[reached]
            against = " ".join(reversed(aim.against)) if aim.against else ""
            subject = " ".join(reversed(aim.subject))
            table.add_row(aim.title, subject, against, f"≤ {aim.at_most:g}", report.shown(values), word)
    if table.row_count:
        data.print(table)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    sys.exit(app())
