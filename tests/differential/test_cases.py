"""Every case of `cases/`, on real Envoy and on our sidecar: the same outcome, or a documented difference."""

from collections.abc import Iterator

import pytest

from tests.differential.cases import Case, CaseFile, all_files
from tests.differential.compare import faults
from tests.differential.lab import Lab

FILES = sorted(all_files(), key=lambda file: (file.key, file.name))


class Labs:
    """The engines for one bootstrap at a time: those of the case before, if this one needs the same."""

    def __init__(self) -> None:
        self._key = ""
        self._lab: Lab | None = None

    def of(self, file: CaseFile) -> Lab:
        if self._lab is None or self._key != file.key:
            self.close()
            self._lab = Lab(file)
            self._key = file.key
        return self._lab

    def close(self) -> None:
        if self._lab is not None:
            self._lab.close()
            self._lab = None


@pytest.fixture(scope="session")
def labs() -> Iterator[Labs]:
    labs = Labs()
    yield labs
    labs.close()


def _entries() -> Iterator[object]:
    for file in FILES:
        group = pytest.mark.xdist_group(f"differential {file.key}")
        for case in file.cases:
            yield pytest.param(file, case, id=case.id, marks=group)


@pytest.mark.parametrize(("file", "case"), list(_entries()))
def test_both_engines_do_the_same(labs: Labs, file: CaseFile, case: Case) -> None:
    found = faults(case, labs.of(file).run(case))
    assert not found, "\n".join(["", *found])
