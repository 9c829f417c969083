"""The Huffman decoder against hpack's, which reads the same table in another way."""

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http2 import huffman

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@given(st.binary(max_size=300))
def test_what_is_encoded_is_read_again(text: bytes) -> None:
    assert huffman.decode(ENCODER.encode(text)) == text


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused_as_the_reference_does(data: bytes) -> None:
    try:
        expected = bytes(decode_huffman(data))
    except HPACKDecodingError:
        with pytest.raises(huffman.BadCode):
            huffman.decode(data)
    else:
        assert huffman.decode(data) == expected
