"""docs/differences.md and the cases say the same."""

import re

from tests.differential import test_tokens
from tests.differential.cases import all_files
from tests.differential.client import COPY_NOISE, OWN_TEXT, REQUEST_NOISE, RESPONSE_NOISE
from tests.tools import ROOT

PAGE = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^### `([a-z0-9-]+)`: \S", PAGE, re.MULTILINE)


def test_each_documented_difference_is_shown_by_a_case_and_each_case_that_differs_is_documented() -> None:
    used = {case.differs for file in all_files() for case in file.cases if case.differs}
    assert sorted(NAMES) == sorted(used | test_tokens.DIFFERENCES)


def test_what_is_not_compared_is_documented() -> None:
    table = PAGE.partition("## What is not compared")[2].partition("## Differences")[0]
    for name in (*REQUEST_NOISE, *COPY_NOISE, *RESPONSE_NOISE, *OWN_TEXT):
        assert f"`{name}`" in table


def test_there_are_cases_enough() -> None:
    """A folder that is not found, or not read, would pass all of them."""
    assert sum(len(file.cases) for file in all_files()) >= 300
