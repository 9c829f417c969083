"""Every case of `cases/`, on real Envoy and on our sidecar: the same outcome, or a documented difference."""

from collections.abc import Iterator

import pytest

from tests.differential.cases import Case, CaseFile, all_files
from tests.differential.compare import faults
from tests.differential.lab import Lab

FILES = all_files()
BY_KEY = {file.key: file for file in FILES}


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The engines for one bootstrap."""
    lab = Lab(BY_KEY[request.param])
    yield lab
    lab.close()


def _entries(files: list[CaseFile]) -> Iterator[object]:
    for file in sorted(files, key=lambda file: file.key):
        for case in file.cases:
            group = pytest.mark.xdist_group(f"differential {file.key[:200]}")
            yield pytest.param(file.key, case, id=case.id, marks=group)


@pytest.mark.parametrize(("lab", "case"), list(_entries(FILES)), indirect=["lab"])
def test_both_engines_do_the_same(lab: Lab, case: Case) -> None:
    found = faults(case, lab.run(case))
    assert not found, "\n".join(["", *found])
