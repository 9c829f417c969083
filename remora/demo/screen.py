"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from remora.demo.observe import View

PLAIN_INTERVAL_S: Final = 10.0


class Screen:
    """Prints the tour; on a terminal, the live table stays below it."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._is_live = self._console.is_terminal
        self._view: Callable[[], View] = View
        self._live: Live | None = None
        self._plain_at = 0.0

    def __enter__(self) -> "Screen":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show_live(self, view: Callable[[], View]) -> None:
        """From now on show the mesh as `view` says."""
        self._view = view
        if self._is_live:
            self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=2)
            self._live.start()

    def say(self, text: str, style: str = "") -> None:
        """A line of the tour."""
        self._console.print(Text(text, style=style), soft_wrap=True)
        if not self._is_live:
            self._console.file.flush()

    def heading(self, text: str) -> None:
        """The name of a step."""
        self.say("")
        self.say(text, "bold")

    def tick(self) -> None:
        """Without a terminal: the table as lines, now and then."""
        if self._is_live or monotonic() - self._plain_at < PLAIN_INTERVAL_S:
            return
        self._plain_at = monotonic()
        for line in plain(self._view()):
            self.say(line)

    def _draw(self) -> RenderableType:
        view = self._view()
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("caller", "callee", "version"):
            drawn.add_column(column)
        for column in ("calls/s", "success", "p50 ms", "p95 ms", "p99 ms"):
            drawn.add_column(column, justify="right")
        for item in view.edges:
            caller, callee, version = item.edge
            success = Text(f"{item.success:.1%}", style="green" if item.success > 0.999 else "red")
            numbers = (f"{item.rate:.1f}", success, f"{item.p50_ms:.1f}", f"{item.p95_ms:.1f}", f"{item.p99_ms:.1f}")
            drawn.add_row(caller, callee, version or "-", *numbers)
        return Group(drawn, Text(_summary(view), style="dim"))


def _summary(view: View) -> str:
    return (
        f"{view.nodes} sidecars; the mesh refuses {view.limited_rate:.1f} calls/s (rate limit), "
        f"sends {view.retry_rate:.1f} calls/s to another endpoint"
    )


def plain(view: View) -> list[str]:
    """The table as lines."""
    lines = [
        f"  {caller} -> {callee}{' ' + version if version else ''}: {item.rate:.1f} calls/s, {item.success:.1%} success, "
        f"p50 {item.p50_ms:.1f} p95 {item.p95_ms:.1f} p99 {item.p99_ms:.1f} ms"
        for item in view.edges
        for caller, callee, version in (item.edge,)
    ]
    return [*lines, f"  {_summary(view)}"] if lines else []
