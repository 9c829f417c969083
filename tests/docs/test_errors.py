"""docs/errors.md explains every code that users can see, and no other."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.tools import ROOT

PAGE: Final = ROOT / "docs" / "errors.md"
SCENARIOS: Final = ROOT / "tests" / "control_plane" / "resources" / "faults.txt"
_CODE: Final = re.compile(r"RMR\d{4}")
_ENTRY: Final = re.compile(r"^### (RMR\d{4})\n(.*?)(?=^##)", re.MULTILINE | re.DOTALL)


def in_source(room: str) -> set[str]:
    """The codes that a package can give."""
    files = [file for file in (ROOT / room).rglob("*.py") if "_pb2" not in file.name]
    return {code for file in files for code in _CODE.findall(file.read_text())}


def entries() -> list[tuple[str, str]]:
    """(code, explanation) in the order of the page."""
    return _ENTRY.findall(PAGE.read_text() + "\n##")


def test_every_code_of_the_source_has_an_entry_and_every_entry_a_code() -> None:
    codes = [code for code, _ in entries()]
    source = set().union(*map(in_source, ("control_plane", "sidecar", "remora")))
    assert sorted(codes) == sorted(source)
    assert codes == sorted(set(codes)), "in order, each once"


@pytest.mark.parametrize(("code", "text"), entries(), ids=[code for code, _ in entries()])
def test_an_entry_says_what_it_means_and_the_way_out(code: str, text: str) -> None:
    meaning, separator, way_out = text.partition("**Way out:**")
    assert separator and len(meaning.split()) > 3 and len(way_out.split()) > 3


def test_codes_of_resources_and_of_the_sidecar_do_not_mix() -> None:
    assert all(code < "RMR0100" for code in in_source("control_plane"))
    assert all(code > "RMR0100" for code in in_source("sidecar"))


def test_every_code_of_resources_is_proven_by_a_scenario() -> None:
    shown = set(_CODE.findall(SCENARIOS.read_text()))
    assert shown == in_source("control_plane")


def test_the_example_is_what_is_really_said() -> None:
    (example,) = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    bookstore.yaml:")]
    assert example.partition(": ")[2].replace("rules[0]", "rules[1]") in SCENARIOS.read_text()
    assert Path("docs/errors.md").name in (ROOT / "README.md").read_text()
