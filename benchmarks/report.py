"""What a run leaves: JSON, plots, and the page that is made of the JSON alone, so that it can be made again."""

import json
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.aims import AIMS, Aim, is_reached, ratios
from benchmarks.measure import METRICS, spread
from benchmarks.proxies import PROXIES
from benchmarks.run import Result
from benchmarks.svg import Bar, Group, bar_chart

Document = dict[str, Any]
"""A run as JSON; its shape is what `document` builds."""

SCHEMA: Final = 1

OTHERS_CORES: Final = 0.2
"""Used by other programs during a run: from here on it is said wherever the figures are."""
SATURATED_CORES: Final = 0.9
"""Below, it was the load that had enough: the proxy could do more."""

FIGURES_START: Final = "<!-- figures of docs/benchmarks/latest.json, written by make bench -->"
FIGURES_END: Final = "<!-- end of figures -->"
FRONT_PAGE_ROWS: Final = ("unary-1", "unary-100", "headers-100", "tls-100")
FRONT_PAGE_WAYS: Final = ("sidecar", "envoy", "haproxy", "nginx", "grpc-aio")

CHARTS: Final = (
    ("cpu.svg", "CPU per call", "unary calls of 128 bytes, µs of user and system time in the proxy", "cpu_us",
     ("unary-1", "unary-10", "unary-100", "unary-1000", "headers-100", "tls-1", "tls-100")),
    ("large.svg", "CPU per call of 64 KiB", "64 KiB there and back, µs of user and system time in the proxy", "cpu_us",
     ("large-1", "large-10", "large-100", "large-1000")),
    ("streams.svg", "CPU per message", "bidi streams, µs for one message there and back", "message_us", ("streams",)),
    ("routes.svg", "CPU per call by size of the route table", "100 in flight, µs", "cpu_us", ("routes",)),
    ("throughput.svg", "Calls per second of one core", "100 in flight, 128 bytes; more is better", "calls_per_s", ("saturation",)),
    ("huge.svg", "Messages of 1 MiB", "MB/s in each direction; more is better", "mb_per_s", ("huge",)),
    ("latency-p50.svg", "Added latency, p50", "open loop at a fixed rate, ms from the intended start, less the direct way's", "added_p50_ms", ("latency",)),
    ("latency-p99.svg", "Added latency, p99", "open loop at a fixed rate, ms from the intended start, less the direct way's", "added_p99_ms", ("latency",)),
    ("memory.svg", "Memory", "RSS idle with 100 routes, MiB", "idle_mib", ("memory",)),
    ("start.svg", "Start to first call", "ms", "start_ms", ("start",)),
)  # fmt: skip
"""(file, title, subtitle, metric, rows)."""


def document(
    results: list[Result],
    *,
    date: str,
    machine: dict[str, str],
    versions: dict[str, str],
    missing: dict[str, str],
    rounds: int,
    scale: float,
) -> Document:
    """A run as plain values."""
    return {
        "schema": SCHEMA,
        "date": date,
        "machine": machine,
        "versions": versions,
        "rounds": rounds,
        "scale": scale,
        "missing": missing,
        "rows": [
            {
                "name": result.row.name,
                "title": result.row.title,
                "figures": list(result.row.figures),
                "note": result.note,
                "errors": result.errors,
                "samples": {
                    label: [{name: round(value, 6) for name, value in sample.items()} for sample in samples]
                    for label, samples in result.samples.items()
                },
            }
            for result in results
        ],
    }


def figures(row: Document, label: str, metric: str) -> list[float]:
    """A metric in all rounds."""
    return [sample[metric] for sample in row["samples"].get(label, ()) if metric in sample]


def labels(row: Document) -> list[str]:
    """The row's ways, in the order of the proxies."""
    order = list(PROXIES)
    return sorted(row["samples"], key=lambda label: order.index(label.partition("/")[0]))


def cell(row: Document, label: str, metric: str) -> str:
    """Median and spread, or a dash."""
    values = figures(row, label, metric)
    if not values:
        return "–"
    low, middle, high = spread(values, METRICS[metric].digits)
    text = middle if len(values) == 1 else f"{middle} ({low}–{high})"
    used = figures(row, label, "cores")
    is_at_least = metric == "calls_per_s" and "cores" in row["figures"] and used and median(used) < SATURATED_CORES
    return f"≥ {text}" if is_at_least else text


def verdicts(run: Document) -> list[tuple[Aim, float | None, float | None, float | None, bool | None]]:
    """Each aim with its median ratio, the lowest and the highest, and whether it was reached (None: not measured)."""
    rows = {row["name"]: row for row in run["rows"]}
    out = []
    for aim in AIMS:
        found = ratios(aim, rows[aim.row]["samples"]) if aim.row in rows else []
        spread = (median(found), min(found), max(found)) if found else (None, None, None)
        out.append((aim, *spread, is_reached(aim, found)))
    return out


def limit(aim: Aim) -> str:
    """The aim's limit in words."""
    return f"≤ {aim.at_most:g}" if aim.at_most is not None else f"≥ {aim.at_least:g}"


def write(run: Document, folder: Path) -> list[Path]:
    """Write latest.json, the plots and README.md into a folder; the paths that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "latest.json"]
    written[0].write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
    plots = charts(run)
    for name, text in plots.items():
        written.append(folder / name)
        written[-1].write_text(text)
    written.append(folder / "README.md")
    written[-1].write_text(page(run, list(plots)))
    return written


def front_page_table(run: Document) -> str:
    """The few rows for the project's README, with date and machine."""
    rows = [row for row in run["rows"] if row["name"] in FRONT_PAGE_ROWS]
    names = [name for name in FRONT_PAGE_WAYS if any(figures(row, name, "cpu_us") for row in rows)]
    lines = [
        "| CPU per call, µs | " + " | ".join(PROXIES[name].title for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for row in rows:
        cells = [f"{median(values):.0f}" if (values := figures(row, name, "cpu_us")) else "–" for name in names]
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    machine = run["machine"]
    lines += [
        "",
        f"Medians of {run['rounds']} rounds on {run['date'][:10]}; {machine['cpu']}, {machine['cores']} cores.",
    ]
    return "\n".join(lines)


def update_front_page(run: Document, page: Path) -> bool:
    """Put the figures between the page's two marks; False if it has none."""
    before, start, rest = page.read_text().partition(FIGURES_START)
    _, end, after = rest.partition(FIGURES_END)
    if not start or not end:
        return False
    page.write_text(f"{before}{start}\n{front_page_table(run)}\n{end}{after}")
    return True


def charts(run: Document) -> dict[str, str]:
    """The plots for which there are figures, by file name."""
    rows = {row["name"]: row for row in run["rows"]}
    out: dict[str, str] = {}
    for name, title, subtitle, metric, wanted in CHARTS:
        groups = [group for each in wanted if each in rows and (group := _group(rows[each], metric))]
        if groups:
            out[name] = bar_chart(title, f"{subtitle}; median of {run['rounds']} rounds, {run['date'][:10]}", groups)
    return out


def _group(row: Document, metric: str) -> Group | None:
    bars = []
    for label in labels(row):
        values = figures(row, label, metric)
        if values:
            bars.append(Bar(label, median(values), min(values), max(values), label.startswith("sidecar")))
    note = f" ({row['note']})" if row["note"] else ""
    return Group(row["title"] + note, tuple(bars)) if bars else None


def page(run: Document, plots: list[str]) -> str:
    """The page for people, all of it made from the run."""
    machine, versions = run["machine"], run["versions"]
    lines = [
        "# Benchmarks",
        "",
        "<!-- made by `make bench`; changes by hand are lost with the next run -->",
        "",
        f"Run of {run['date']}, {run['rounds']} rounds"
        + (f", with {run['scale']:g} of the usual number of calls" if run["scale"] != 1 else "")
        + f". {machine['cpu']}, {machine['cores']} cores, {machine['memory']}, Linux {machine['kernel']}; other programs used {machine['others']} cores meanwhile.",
        "",
        "Versions: " + ", ".join(f"{name} {text}" for name, text in versions.items()) + ".",
        "",
    ]
    lines += [f"**Not measured: {name}: {why}.**" for name, why in run["missing"].items()]
    lines += ["", *_aims_table(run)]
    for row in run["rows"]:
        lines += _row_table(row)
    lines += ["## Plots", ""]
    lines += [f"![{name.removesuffix('.svg')}]({name})" for name in plots]
    lines += ["", _HOW, ""]
    return "\n".join(lines)


def _aims_table(run: Document) -> list[str]:
    lines = ["## Aims", "", "| aim | of | to | limit | measured | |", "|---|---|---|---|---|---|"]
    for aim, middle, low, high, reached in verdicts(run):
        measured = "not measured" if middle is None else f"{middle:.2f} ({low:.2f}–{high:.2f})"
        word = {True: "reached", False: "**not reached**", None: ""}[reached]
        lines.append(f"| {aim.title} | {aim.subject} | {aim.against} | {limit(aim)} | {measured} | {word} |")
    return [*lines, "", "Ratios of figures of the same round, their median and spread.", ""]


def _row_table(row: Document) -> list[str]:
    shown: list[str] = row["figures"]
    note = f" ({row['note']})" if row["note"] else ""
    lines = [f"## {row['title']}{note}", ""]
    lines.append(
        "| `"
        + row["name"]
        + "` | "
        + " | ".join(f"{METRICS[name].title}, {METRICS[name].unit}" for name in shown)
        + " |"
    )
    lines.append("|---|" + "---|" * len(shown))
    for label in labels(row):
        cells = [cell(row, label, name) for name in shown]
        if any(text != "–" for text in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += [f"| {label} | failed: {why} |" for label, why in row["errors"].items()]
    return [*lines, ""]


_HOW: Final = """## How it is measured

`make bench`, or `python -m benchmarks [ROW…] [--quick] [--rounds N] [--json FILE]`.

- All ways of a row are loaded in turn, round after round, in an order that shifts; a figure is the median of the rounds, in brackets the lowest and the highest.
- *CPU per call* is user and system time of all processes of the proxy, divided by calls. Load and backend do not count.
- One worker each. The sidecar and Envoy read the same bootstrap file (`benchmarks/bootstrap.yaml`: routing, a local rate limit, breaker limits); HAProxy, nginx and the `grpc.aio` proxy only forward.
- Small unary calls: h2load, four connections (two at 10 in flight, one at 1), against `nghttpd --echo-upload`, which makes a file for each call and so answers some thousands of calls a second: the proxies are not saturated, as in most real services. *Saturation*, *latency* and *1 MiB* have a faster backend, and there the proxy has a core of its own.
- Headers that differ, streams and the open loop come from a generator on raw frames (`benchmarks/load`), which uses HPACK's dynamic table wherever the peer keeps one.
- The open loop starts calls at times drawn before (Poisson), whatever the answers; latency counts from the time at which a call should have started. The rate is half of what the slower of sidecar and Envoy can take.
- *Calls per second* with a ≥: the proxy used less than 0.9 of its core, as load and backend on the other ones could not do more.
- A client's first calls cost a proxy more than later ones, and each load opens new connections: part of the figures, the more so the fewer calls there are (`--quick`).
- On a busy machine more calls share a wake-up of the proxy, so each costs less, and latencies mean little: other programs should be quiet.
- Every call is checked: its status, and that all bytes came back. A way with a failed call has no figure."""
