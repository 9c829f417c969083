"""Text scenarios: files that a person can read, each a list of `== TITLE`, what is given, and `--` with what comes of it.

A scenario that fails shows a diff. After a change that is meant, `REWRITE=1 pytest FILE` writes what comes now into the
file; read the diff before it is committed.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TITLE: Final = "== "
_RESULT: Final = "--"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One block of a file."""

    file: Path
    title: str
    given: str
    expected: str

    def play(self, outcome: Callable[[str], str]) -> None:
        """Assert that what comes of what is given is what the file says."""
        seen = outcome(self.given).strip("\n")
        if os.environ.get("REWRITE"):
            _rewrite(self, seen)
            return
        assert seen == self.expected, f"{self.file.name}: {self.title}"


def read(file: Path) -> list[Scenario]:
    """The scenarios of a file, in order."""
    found: list[Scenario] = []
    for block in ("\n" + file.read_text(encoding="utf-8")).split("\n" + _TITLE)[1:]:
        title, _, body = block.partition("\n")
        given, separator, expected = ("\n" + body).partition(f"\n{_RESULT}\n")
        assert separator or body.rstrip().endswith(f"\n{_RESULT}"), f"{file.name}: {title} has no line {_RESULT}"
        found.append(Scenario(file, title, given.removesuffix(f"\n{_RESULT}").lstrip("\n"), expected.strip("\n")))
    titles = [scenario.title for scenario in found]
    assert len(set(titles)) == len(titles), f"{file.name}: a title stands twice"
    return found


def _rewrite(changed: Scenario, seen: str) -> None:
    head = ("\n" + changed.file.read_text(encoding="utf-8")).split("\n" + _TITLE)[0].lstrip("\n")
    blocks = [
        f"{_TITLE}{item.title}\n{item.given.rstrip()}\n{_RESULT}\n{seen if item.title == changed.title else item.expected}\n"
        for item in read(changed.file)
    ]
    changed.file.write_text((head.rstrip() + "\n\n" if head.strip() else "") + "\n".join(blocks), encoding="utf-8")
