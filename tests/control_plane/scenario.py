"""Text scenarios: files that a person can read, each a list of `== TITLE` and a text.

Two forms. `read`: what is given, a line `--`, and what comes of it. `read_script`: lines that do something, and indented under each what
happens then. A scenario that fails shows a diff. After a change that is meant, `REWRITE=1 pytest FILE` writes what comes now into the file;
read the diff before it is committed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TITLE: Final = "== "
_RESULT: Final = "--"
_INDENT: Final = "    "


@dataclass(frozen=True, slots=True)
class Scenario:
    """One block of a file."""

    file: Path
    title: str
    given: str
    expected: str
    is_script: bool = False

    def play(self, outcome: Callable[[str], str]) -> None:
        """Assert that what comes of what is given is what the file says."""
        seen = outcome(self.given).strip("\n")
        if os.environ.get("REWRITE"):
            _rewrite(self, seen)
            return
        assert seen == self.expected, f"{self.file.name}: {self.title}"

    def text(self, expected: str) -> str:
        """The block as it stands in the file."""
        body = expected if self.is_script else f"{self.given.rstrip()}\n{_RESULT}\n{expected}"
        return f"{_TITLE}{self.title}\n{body}\n"


def read(file: Path) -> list[Scenario]:
    """The scenarios of a file with what is given and what comes of it, in order."""
    found = []
    for title, body in _blocks(file):
        given, separator, expected = ("\n" + body + "\n").partition(f"\n{_RESULT}\n")
        assert separator, f"{file.name}: {title} has no line {_RESULT}"
        found.append(Scenario(file, title, given.strip("\n"), expected.strip("\n")))
    return found


def read_script(file: Path) -> list[Scenario]:
    """The scenarios of a file with lines that do something, and what happens then under each."""
    found = []
    for title, body in _blocks(file):
        lines = [line for line in body.splitlines() if not line.startswith(_INDENT)]
        found.append(Scenario(file, title, "\n".join(lines).strip("\n"), body.strip("\n"), is_script=True))
    return found


def _blocks(file: Path) -> list[tuple[str, str]]:
    blocks = [
        (title, body)
        for title, _, body in (
            block.partition("\n") for block in ("\n" + file.read_text(encoding="utf-8")).split("\n" + _TITLE)[1:]
        )
    ]
    assert len(dict(blocks)) == len(blocks), f"{file.name}: a title stands twice"
    return blocks


def _rewrite(changed: Scenario, seen: str) -> None:
    head = ("\n" + changed.file.read_text(encoding="utf-8")).split("\n" + _TITLE)[0].strip("\n")
    scenarios = read_script(changed.file) if changed.is_script else read(changed.file)
    blocks = [item.text(seen if item.title == changed.title else item.expected) for item in scenarios]
    changed.file.write_text("\n".join([f"{head}\n", *blocks] if head else blocks), encoding="utf-8")
