"""The page of a run."""

from statistics import median
from typing import Any, Final

RECOVERY_AT_MOST_S: Final = 5.0
THROUGHPUT_AT_LEAST: Final = 0.5
"""Of DTM's."""


def _median(run: dict[str, Any], name: str, key: str) -> float | None:
    samples = run["samples"].get(name)
    return median(each[key] for each in samples) if samples else None


def aims(run: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Aim, what was measured, and whether that reaches it; only what was measured."""
    found: list[tuple[str, str, bool]] = []
    for mode in ("saga", "tcc"):
        ours, theirs = (_median(run, f"{name} {mode}", "per_s") for name in ("remora", "dtm"))
        if ours and theirs:
            text = f"{mode}: at least half of DTM's transactions a second, with one core"
            found.append((text, f"{ours / theirs:.2f} of {theirs:.0f}", ours / theirs >= THROUGHPUT_AT_LEAST))
        ours, theirs = (_median(run, f"{name} {mode}", "syncs") for name in ("remora", "dtm"))
        if ours and theirs:
            text = f"{mode}: fewer waits for the disk a transaction than DTM"
            found.append((text, f"{ours:.1f} against {theirs:.1f}", ours < theirs))
    if run["recovery_s"]:
        worst = max(run["recovery_s"])
        text = f"1,000 open transactions recovered in {RECOVERY_AT_MOST_S:g} s"
        found.append((text, f"{worst:.1f} s at most", worst <= RECOVERY_AT_MOST_S))
    return found


def page(run: dict[str, Any]) -> str:
    """Markdown."""
    facts = ", ".join(f"{key} {value}" for key, value in run["machine"].items() if value)
    lines = [
        "# What a transaction costs",
        "",
        f"Measured {run['date']} by `make bench-transactions`: {run['rounds']} rounds of {run['seconds']:g} s each, in turn; medians. {facts}.",
        "`others` is how many cores other programs used meanwhile: above 0.2 the times are worth little, the ratios a bit more.",
        "",
        "## Coordinators",
        "",
        "A saga of three steps one after the other, and a TCC of three branches, 64 at a time. The log is in the same PostgreSQL (fsync on), the",
        "participants answer at once, the client is the same; the coordinator has one core, all else the others. DTM 1.19.0.",
        "Ours is told all branches of a TCC with its beginning (`plan`), DTM one by one, which is its only way. Of a saga ours waits for",
        "the disk twice: before the first call, and before its end is answered.",
        "",
        "| | transactions/s | p50 ms | p99 ms | CPU ms each | waits for the disk each, one at a time |",
        "|---|---|---|---|---|---|",
    ]
    for name in run["samples"]:
        cells = [_median(run, name, key) or 0.0 for key in ("per_s", "p50_ms", "p99_ms", "cpu_ms", "syncs")]
        lines.append(f"| {name} | {cells[0]:.0f} | {cells[1]:.1f} | {cells[2]:.1f} | {cells[3]:.2f} | {cells[4]:.1f} |")
    lines += [f"\nNot measured: {each}." for each in run["missing"]]
    if run["recovery_s"]:
        recovered = ", ".join(f"{each:.1f}" for each in run["recovery_s"])
        lines += [
            "",
            "## Recovery",
            "",
            "The coordinator is killed with 1,000 open sagas of three steps whose participant is away, and started again when it is back.",
        ]
        lines += [f"From the start of the program to the last saga's end: {recovered} s.", ""]
    if run["ways"]:
        lines += [
            "## The bookstore's ways",
            "",
            "Purchases through seven services without a mesh, 16 at a time; each service and the coordinator on SQLite",
        ]
        lines += [
            "(`synchronous=FULL`), XA's on PostgreSQL. Two cores carry everything, so this compares the ways, not the machine.",
            "",
        ]
        lines += ["| way | purchases/s | p50 ms | p99 ms |", "|---|---|---|---|"]
        for name, way in run["ways"].items():
            lines.append(f"| {name} | {way['per_s']:.0f} | {way['p50_ms']:.0f} | {way['p99_ms']:.0f} |")
        lines.append("")
    lines += ["## Aims", "", "| aim | measured | |", "|---|---|---|"]
    lines += [
        f"| {text} | {measured} | {'reached' if reached else '**not reached**'} |"
        for text, measured, reached in aims(run)
    ]
    return "\n".join(lines) + "\n"
