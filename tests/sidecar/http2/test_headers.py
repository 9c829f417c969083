"""The stateless header codec, with `hpack` as the reference."""

import contextlib

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http2 import headers
from sidecar.http2.headers import HeaderError, TooLarge

names = st.sampled_from([b":path", b":method", b"grpc-timeout", b"x-user", b"user-agent", b"te"]) | st.binary(
    min_size=1, max_size=40
)
fields = st.lists(st.tuples(names, st.binary(max_size=300)), max_size=20)


@given(fields)
def test_what_is_written_is_read_by_the_reference(pairs: list[tuple[bytes, bytes]]) -> None:
    decoded = hpack.Decoder(max_header_list_size=1 << 20).decode(headers.encode(pairs), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in decoded] == pairs


@given(fields)
def test_what_a_reference_without_a_table_writes_is_read(pairs: list[tuple[bytes, bytes]]) -> None:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    assert headers.decode(encoder.encode(pairs)) == pairs


@given(fields)
def test_the_slices_of_a_block_are_the_block(pairs: list[tuple[bytes, bytes]]) -> None:
    block = headers.encode(pairs)
    assert b"".join(whole for _, whole in headers.split(block)) == block


@given(fields, st.integers(min_value=1, max_value=400))
def test_a_block_that_is_cut_short_is_an_error_or_whole_fields(pairs: list[tuple[bytes, bytes]], cut: int) -> None:
    block = headers.encode(pairs)[:-cut]
    with contextlib.suppress(HeaderError):
        assert headers.decode(block) == pairs[: len(headers.split(block))]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_header_error(block: bytes) -> None:
    with contextlib.suppress(HeaderError):
        headers.decode(block)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"\x80", "index 0"),
        (b"\xbe", "first entry of a dynamic table"),
        (b"\x7e\x01a", "name in a dynamic table"),
        (b"\x3f\xe1\x1f", "table size above what was announced"),
        (b"\x82\x20", "size update behind a field"),
        (b"\x00\x01a", "no value"),
        (b"\x00\x7f\xff\xff\xff\xff\xff\x01", "length without end"),
        (b"\x00\x05a", "name shorter than its length"),
    ],
)
def test_a_block_that_cannot_stand_for_itself_is_refused(block: bytes, why: str) -> None:
    with pytest.raises(HeaderError):
        headers.split(block)


def test_a_size_update_to_zero_is_dropped() -> None:
    assert headers.split(b"\x20\x82") == [(b"\x82", b"\x82")]


def test_as_many_fields_as_the_limit_are_taken_and_one_more_is_not() -> None:
    assert len(headers.split(b"\x20\x20" + b"\x82" * headers.MAX_FIELDS)) == headers.MAX_FIELDS
    for extra in (1, 2, 3, 10_000):
        with pytest.raises(TooLarge, match="more than 100 fields"):
            headers.split(b"\x82" * (headers.MAX_FIELDS + extra))


def test_a_block_above_the_limit_of_bytes_is_refused_with_what_was_read_of_it() -> None:
    block = headers.encode([(b":path", b"/a"), (b"x-long", b"{" * headers.MAX_BYTES)])
    with pytest.raises(TooLarge) as caught:
        headers.split(block)
    assert headers.value_of(caught.value.fields[0]) == b"/a"


def test_values_are_written_as_they_are() -> None:
    assert headers.encode([(b"x-a", b"a" * 200)]).endswith(b"a" * 200)


def test_a_bad_huffman_code_is_refused_when_the_value_is_read() -> None:
    [field] = headers.split(b"\x00\x01a\x81\x00")
    with pytest.raises(HeaderError):
        headers.value_of(field)
