"""The resources that the pages show are valid."""

import re
from pathlib import Path

import pytest

from control_plane.resources.load import load

PAGES = sorted((Path(__file__).parents[3] / "docs").glob("load-balancing.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_can_be_applied(page: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert len(load(block, page.name)) == 1
