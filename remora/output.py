"""What commands print: tables for people, JSON and YAML for programs; data on standard output, all else on standard error."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from io import StringIO
from typing import Any


class OutputClosed(Exception):
    """Whoever read our standard output has seen enough."""


class OutputFailed(Exception):
    """Standard output cannot be written; the text says why."""


class Output(StrEnum):
    """How data is printed."""

    table = "table"
    json = "json"
    yaml = "yaml"


def line(text: str) -> None:
    """Data, on standard output, at once. Raises OutputClosed, OutputFailed."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise OutputFailed(f"cannot write to standard output: {(error.strerror or str(error)).lower()}") from None


def note(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def to_yaml(data: Any) -> str:
    """YAML as a person would write it."""
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    writer.dump(data, text)
    return text.getvalue()


def show(data: Any, output: Output) -> None:
    """Print data as JSON or YAML."""
    line(json.dumps(data, indent=2, ensure_ascii=False) if output is Output.json else to_yaml(data).rstrip())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print rows in columns; `empty` is said when there are none."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        note(empty)
        return
    if not sys.stdout.isatty():
        widths = [max(len(row[place]) for row in [list(columns), *cells]) for place in range(len(columns))]
        padded = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [list(columns), *cells]
        )
        line("\n".join(padded))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in cells:
        drawn.add_row(*row)
    Console().print(drawn)
