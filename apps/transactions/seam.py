"""The one place that every durable write and every send of this library passes.

A test installs a hook and so learns every point at which a process can die, and kills it there: the points are found, not listed by
hand. Nothing is installed in production, and then a crossing costs one comparison.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Final

BEFORE: Final = "before"
AFTER: Final = "after"

Hook = Callable[[str, str], None]
"""Called with BEFORE or AFTER and the crossing's name, such as `write barrier.commit` or `send reply`."""

_hook: Hook | None = None


def install(hook: Hook | None) -> None:
    """Be told of every crossing of this process; None ends it."""
    global _hook
    _hook = hook


class crossing:
    """`with crossing("write", "log"): ...` around what makes something durable, or lets something out of the process."""

    __slots__ = ("_name",)

    def __init__(self, kind: str, what: str) -> None:
        self._name = f"{kind} {what}"

    def __enter__(self) -> None:
        if _hook is not None:
            _hook(BEFORE, self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _hook is not None and error is None:
            _hook(AFTER, self._name)
