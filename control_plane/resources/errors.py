"""A fault in a resource: where, what, and the way out."""

from dataclasses import dataclass
from typing import Final

MAX_SHOWN: Final = 130
"""Characters of a value in a message."""


def quoted(text: str) -> str:
    """A value as messages show it: in quotes, on one line, not too long."""
    short = text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
    return '"' + "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in short) + '"'


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `path` is the field in YAML spelling, e.g. `spec.rules[0].backendRefs`."""

    path: str
    text: str
    code: str
    """`RMR` and four digits; docs/errors.md explains each."""

    def __str__(self) -> str:
        return f"{self.path}: {self.text} ({self.code})" if self.path else f"{self.text} ({self.code})"


class InvalidResource(Exception):
    """Resources that are refused; `faults` lists every fault as a line that can be shown."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
