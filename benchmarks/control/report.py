"""What a run leaves: JSON, plots, and the page that is made of the JSON alone, so that it can be made again."""

import json
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.control.aims import AIMS, Aim, Samples, is_reached, measured
from benchmarks.control.measure import METRICS, Plan, Result
from benchmarks.control.rows import ROWS, WAYS
from benchmarks.measure import spread
from benchmarks.svg import Bar, Group, bar_chart

Document = dict[str, Any]
"""A run as JSON; its shape is what `document` builds."""

SCHEMA: Final = 1
CHARTS: Final = (
    ("control-endpoint.svg", "From an endpoint change to the last ACK", "ms", "last_ms",
     ("endpoint/100", "endpoint/1000", "endpoint/10000")),
    ("control-route.svg", "From a route change to the last ACK", "ms", "last_ms",
     ("route/100", "route/1000", "route/10000")),
    ("control-services.svg", "CPU per push of one endpoint, by the size of the mesh", "µs of user and system time in the control plane", "push_us",
     ("endpoint/100", "endpoint/100-of-10000")),
    ("control-memory.svg", "Memory per idle stream", "RSS, KiB", "rss_kib",
     ("open/1000-of-10", "open/1000", "open/1000-own")),
)  # fmt: skip
"""(file, title, subtitle, metric, rows)."""


def document(
    results: list[Result],
    plan: Plan,
    *,
    date: str,
    machine: dict[str, str],
    versions: dict[str, str],
    missing: dict[str, str],
) -> Document:
    """A run as plain values."""
    return {
        "schema": SCHEMA,
        "date": date,
        "machine": machine,
        "versions": versions,
        "rounds": plan.rounds,
        "scale": plan.scale,
        "simulators": plan.simulators,
        "client": plan.client,
        "missing": missing,
        "rows": [
            {
                "name": result.row.name,
                "setup": result.row.setup.scaled(plan.scale).title,
                "title": result.row.scenario.title,
                "figures": list(result.row.scenario.figures),
                "errors": result.errors,
                "samples": {
                    way: [{name: round(value, 3) for name, value in sample.items()} for sample in samples]
                    for way, samples in result.samples.items()
                },
            }
            for result in results
        ],
    }


def samples(run: Document) -> Samples:
    """All samples, by row and way."""
    return {row["name"]: row["samples"] for row in run["rows"]}


def figures(row: Document, way: str, metric: str) -> list[float]:
    """A metric in all rounds."""
    return [sample[metric] for sample in row["samples"].get(way, ())]


def cell(row: Document, way: str, metric: str) -> str:
    """Median and spread, or a dash."""
    values = figures(row, way, metric)
    if not values:
        return "–"
    low, middle, high = spread(values, METRICS[metric].digits)
    return middle if low == high else f"{middle} ({low}–{high})"


def verdicts(run: Document) -> list[tuple[Aim, list[float], bool | None]]:
    """Each aim with what was measured of it by round, and whether it was reached (None: not measured, or not in full size)."""
    there = samples(run)
    found = [(aim, measured(aim, there)) for aim in AIMS]
    return [(aim, values, is_reached(aim, values) if run["scale"] == 1 else None) for aim, values in found]


def shown(values: list[float]) -> str:
    """Median and spread of what an aim is about."""
    if not values:
        return "not measured"
    low, middle, high = (f"{value:.2f}" for value in (min(values), median(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


def write(run: Document, folder: Path) -> list[Path]:
    """Write control.json, the plots and control.md into a folder; the paths that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "control.json"]
    written[0].write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    plots = charts(run)
    for name, text in plots.items():
        written.append(folder / name)
        written[-1].write_text(text)
    written.append(folder / "control.md")
    written[-1].write_text(page(run, list(plots)))
    return written


def charts(run: Document) -> dict[str, str]:
    """The plots for which there are figures, by file name."""
    rows = {row["name"]: row for row in run["rows"]}
    out: dict[str, str] = {}
    for name, title, subtitle, metric, wanted in CHARTS:
        groups = []
        for each in wanted:
            bars = [
                Bar(way, median(values), min(values), max(values), way.startswith("remora"))
                for way in WAYS
                if each in rows and (values := figures(rows[each], way, metric))
            ]
            if bars:
                groups.append(Group(rows[each]["setup"], tuple(bars)))
        if groups:
            out[name] = bar_chart(title, f"{subtitle}; median of {run['rounds']} rounds, {run['date'][:10]}", groups)
    return out


def page(run: Document, plots: list[str]) -> str:
    """The page for people, all of it made from the run."""
    machine, versions = run["machine"], run["versions"]
    lines = [
        "# Benchmarks of the control plane",
        "",
        "<!-- made by `make bench-control`; changes by hand are lost with the next run -->",
        "",
        f"Run of {run['date']}, {run['rounds']} rounds"
        + (
            f", with {run['scale']:g} of the usual streams, services and changes (the names of the rows are those of a full run)"
            if run["scale"] != 1
            else ""
        )
        + f". {machine['cpu']}, {machine['cores']} cores, {machine['memory']}, Linux {machine['kernel']}; other programs used {machine['others']} cores meanwhile.",
        "",
        "Versions: " + ", ".join(f"{name} {text}" for name, text in versions.items()) + ".",
        "",
    ]
    lines += [f"**Not measured: {name}: {why}.**" for name, why in run["missing"].items()]
    lines += ["", "## Aims", "", "| aim | of | to | limit | measured | |", "|---|---|---|---|---|---|"]
    for aim, values, reached in verdicts(run):
        word = {True: "reached", False: "**not reached**", None: ""}[reached]
        against = _place(aim.against) if aim.against else ""
        lines.append(
            f"| {aim.title} | {_place(aim.subject)} | {against} | ≤ {aim.at_most:g} | {shown(values)} | {word} |"
        )
    lines += [
        "",
        "Figures, or ratios of figures of the same round: median and spread. `*` is the better of both variants."
        + (" The aims are for a run in full size: of this one there is no verdict." if run["scale"] != 1 else ""),
        "",
    ]
    for setup in dict.fromkeys(row["setup"] for row in run["rows"]):
        lines += [f"## {setup[0].upper()}{setup[1:]}", ""]
        for row in run["rows"]:
            if row["setup"] == setup:
                lines += _table(row)
    lines += ["## Plots", ""]
    lines += [f"![{name.removesuffix('.svg')}]({name})" for name in plots]
    lines += ["", _HOW, ""]
    return "\n".join(lines)


def _place(place: tuple[str, str]) -> str:
    return f"{place[1]}, `{place[0]}`"


def _table(row: Document) -> list[str]:
    metrics = [METRICS[name] for name in row["figures"]]
    heads = [metric.title + (f", {metric.unit}" if metric.unit else "") for metric in metrics]
    lines = [f"{row['title'][0].upper()}{row['title'][1:]}:", ""]
    lines.append(f"| `{row['name']}` | " + " | ".join(heads) + " |")
    lines.append("|---|" + "---|" * len(heads))
    for way in WAYS:
        if way in row["samples"]:
            lines.append(f"| {way} | " + " | ".join(cell(row, way, name) for name in row["figures"]) + " |")
        elif way in row["errors"]:
            lines.append(f"| {way} | failed: {row['errors'][way]} |")
    return [*lines, ""]


_HOW: Final = f"""## How it is measured

`make bench-control`, or `python -m benchmarks.control [ROW…] [--quick] [--rounds N] [--ways NAME,NAME] [--json FILE]`; the rows are {", ".join(f"`{row.name}`" for row in ROWS)}.

- The nodes are simulated: they speak ADS on real gRPC streams over loopback, ask as Envoy does (clusters and listeners by the wildcard, endpoints and routes by name), take everything, ACK at once and note when. They are on the same machine as the control plane, so the client writes HTTP/2 frames itself: a gRPC library's client costs as much as the control plane, and all figures would be the client's. `--client grpcio` takes the library.
- A change is an API call (an instance registers again as another version; a route gets another match) with a mark that the nodes find in what they are sent. Times run from just before the call to the moment at which a node hands its ACK to its socket: store, translation, push, and the simulator's own work are in them. *p50* and *p99* are over all nodes, and all changes if there are several.
- `go` is `benchmarks/control/goplane`: go-control-plane's snapshot cache, one snapshot for all nodes, a version for each type. It serves the very bytes that Remora sends, and gets changes of the same size ready made; Remora stores them (on disk, synced) and translates them, within the time that is measured.
- The ways take turns, round after round, in an order that shifts; other ways are connected and idle meanwhile. With 10,000 streams they do not fit into the memory at once, and run one after the other.
- *CPU per push* is user and system time of the control plane from before the change until nothing is sent any more, divided by the responses that the nodes got. *To each node* and *from each node* are bytes on the wire, HTTP/2 included; with state of the world an ACK repeats all names.
- *RSS per idle stream* is what the control plane grew by from before the first node to one second after the last had everything."""
