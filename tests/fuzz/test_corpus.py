"""Every input that the fuzzer kept, replayed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_no_kept_input_breaks_its_target(name: str) -> None:
    kept = corpus.load(name)
    assert len(kept) > 10
    for data in kept:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=300))
def test_no_bytes_by_chance_break_a_target(name: str, data: bytes) -> None:
    TARGETS[name](data)
