"""What the commands of both benches share: exit codes, words of the command line, progress, and how a run ends."""

from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeElapsedColumn

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130

notices = Console(stderr=True, soft_wrap=True)

T = TypeVar("T")


def progress_columns() -> tuple[ProgressColumn, ...]:
    """Of the progress bar."""
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


def interrupt(number: int, frame: FrameType | None) -> None:
    """For SIGTERM: the same as Ctrl-C."""
    raise KeyboardInterrupt


def choose(names: Iterable[str], known: Mapping[str, T]) -> list[T]:
    """The rows of these names, in this order; all if none is named. Raises BadParameter."""
    for name in names:
        if name not in known:
            raise typer.BadParameter(f'"{name}" is no row; there are {", ".join(known)}')
    return [known[name] for name in names] or list(known.values())


def finish(run: Mapping[str, Any]) -> NoReturn:
    """Say what failed, and exit with the code that says it too."""
    failed = [f"{row['name']} {label}: {why}" for row in run["rows"] for label, why in row["errors"].items()]
    for line in failed:
        notices.print(f"[bold red]failed:[/] {line}", highlight=False)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_DONE)
