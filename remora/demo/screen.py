"""What the demo shows: a live table on a terminal, plain lines elsewhere, and on request a picture of itself."""

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from remora.demo.observe import EdgeView, View

PLAIN_INTERVAL_S: Final = 10.0
HANGING_INDENT: Final = 14
"""Where a line of the tour goes on that is longer than the terminal."""
PICTURE_COLUMNS: Final = 100
PICTURE_STEPS: Final = 3
"""Of the tour: the last ones that were said."""


class _Console(Console):
    """One that leaves it to us what happens when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Screen:
    """Prints the tour; on a terminal, the live table stays below it. `on_closed` is called when nobody reads any more."""

    def __init__(self, on_closed: Callable[[], object], picture: Path | None = None) -> None:
        self._console = _Console(highlight=False)
        self._on_closed = on_closed
        self._is_live = self._console.is_terminal
        self._draw: Callable[[], RenderableType] = lambda: ""
        self._lines: Callable[[], list[str]] = list
        self._live: Live | None = None
        self._plain_at = 0.0
        self._steps: list[list[Text]] = [[]]
        """What was said, by step of the tour."""
        self._picture = picture

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def show_live(self, view: Callable[[], View]) -> None:
        """From now on show the mesh as `view` says."""
        self.show(lambda: draw(view()), lambda: plain(view()))

    def show(self, drawn: Callable[[], RenderableType], lines: Callable[[], list[str]]) -> None:
        """From now on show this below the tour; `lines` where there is no terminal."""
        self._draw, self._lines = drawn, lines
        if self._is_live and self._live is None:
            self._live = Live(
                get_renderable=lambda: self._draw(), console=self._console, refresh_per_second=2, transient=True
            )
            self._live.start()

    def leave(self) -> None:
        """The table goes, the tour stays. From now on it does not matter whether somebody reads."""
        self._on_closed = lambda: None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, line: Text | str) -> None:
        try:
            self._console.print(line, soft_wrap=True)
        except OSError:  # a pipe whose reader is gone, a terminal that was closed
            self._console.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._on_closed()

    def say(self, text: str, style: str = "") -> None:
        """A line of the tour."""
        line = Text(text, style=style)
        self._steps[-1].append(line)
        width = self._console.width if self._is_live else max(1, len(text))
        for part in _wrapped(line, width):
            self._print(part)

    def type(self, command: str) -> None:
        """What a user would type; the terminal may break the line, so that it can be copied."""
        line = Text(f"   $ {command}", style="cyan")
        self._steps[-1].append(line)
        self._print(line)

    def heading(self, text: str) -> None:
        """The name of a step."""
        self._steps.append([])
        self.say("")
        self.say(text, "bold")

    def tick(self) -> None:
        """Without a terminal: the table as lines, now and then."""
        if self._is_live or monotonic() - self._plain_at < PLAIN_INTERVAL_S:
            return
        self._plain_at = monotonic()
        for line in self._lines():
            self._print(line)

    def take_picture(self) -> None:
        """Write the last steps and the table as they are now, if a picture is wanted (SVG)."""
        if self._picture is None:
            return
        canvas = Console(record=True, width=PICTURE_COLUMNS, file=StringIO(), force_terminal=True, highlight=False)
        lines = [line for step in self._steps[-PICTURE_STEPS:] for line in step]
        for line in lines[1:]:
            for part in _wrapped(line, PICTURE_COLUMNS):
                canvas.print(part)
        canvas.print()
        canvas.print(self._draw())
        svg = canvas.export_svg(title="remora demo")
        # No fonts from elsewhere: a picture in a page loads nothing.
        self._picture.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


def _wrapped(line: Text, width: int) -> Iterator[Text]:
    """A line in parts that fit, all but the first one indented."""
    if line.cell_len <= width:
        yield line
        return
    parts = textwrap.wrap(
        line.plain, max(width, 2 * HANGING_INDENT), subsequent_indent=" " * HANGING_INDENT, drop_whitespace=True
    )
    indent = len(line.plain) - len(line.plain.lstrip())
    for number, part in enumerate(parts):
        yield Text((" " * indent + part.lstrip() if number == 0 else part), style=line.style)


def draw(view: View) -> RenderableType:
    """The table, with a line that says what it is."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    drawn.add_column("caller → callee, version", min_width=29, no_wrap=True)
    for column in ("calls/s", "success", "p50", "p95", "p99 ms"):
        drawn.add_column(column, min_width=max(6, len(column)), justify="right", no_wrap=True)
    drawn.add_column("the mesh", min_width=15, no_wrap=True, overflow="ellipsis")
    for item in view.edges:
        caller, callee, version = item.edge
        style = "green" if (item.success or 0.0) > 0.999 else "red"
        success = Text("-") if item.success is None else Text(_share(item), style=style)
        numbers = (f"{item.rate:.1f}", success, f"{item.p50_ms:.1f}", f"{item.p95_ms:.1f}", f"{item.p99_ms:.1f}")
        drawn.add_row(f"{caller} → {callee} {version}".rstrip(), *numbers, _deeds(item))
    title = f"live: {view.nodes} sidecars, last {view.span_s:.0f} s"
    return Group(Rule(title, style="dim", align="left"), drawn)


def _share(item: EdgeView) -> str:
    return "unknown" if item.success is None else f"{item.success:.1%}"


def _deeds(item: EdgeView) -> Text:
    """What the mesh did on an edge."""
    found = [Text(f"balances over {item.instances}" if item.instances > 1 else "")]
    if item.refused:
        found.append(Text(f"refuses {item.refused:.1f}/s", style="yellow"))
    if item.moved:
        found.append(Text(f"moves {item.moved:.1f}/s elsewhere", style="yellow"))
    return Text(", ").join(part for part in found if part.plain)


def plain(view: View) -> list[str]:
    """The table as lines."""
    lines = [
        f"  {caller} -> {callee}{' ' + version if version else ''}: {item.rate:.1f} calls/s, {_share(item)} success, "
        f"p50 {item.p50_ms:.1f} p95 {item.p95_ms:.1f} p99 {item.p99_ms:.1f} ms"
        + (f"; the mesh {deeds}" if (deeds := _deeds(item).plain) else "")
        for item in view.edges
        for caller, callee, version in (item.edge,)
    ]
    return [*lines, f"  {view.nodes} sidecars"] if lines else []
