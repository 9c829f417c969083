"""Regular expressions are RE2's: what they take, what they find, and that no text takes long."""

import time

import pytest

from sidecar.policy.pattern import PatternError, check, check_substitution, matches, replace


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("/shop.Orders/.*", b"/shop.Orders/Place", True),
        ("/shop.Orders/.*", b"x/shop.Orders/Place", False),
        ("a|ab", b"ab", True),
        (r"\pL+", b"Gr\xf6\xdfe", True),
        (".", "ß".encode(), False),
        (".", b"\xff", True),
        ("(?i)abc", b"ABC", True),
        ("", b"", True),
    ],
)
def test_a_pattern_fits_the_whole_text(pattern: str, text: bytes, fits: bool) -> None:
    check(pattern)
    assert matches(pattern, text) is fits


@pytest.mark.parametrize("pattern", ["(?=a)", r"(a)\1", "a{1001}", "(", "[a", "a**", "(?<!b)a"])
def test_what_re2_does_not_know_is_refused_with_its_reason(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"\w"):
        check(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(.*)*x", "(a?){100}a{100}"])
def test_no_text_takes_long(pattern: str) -> None:
    """Python's `re` needs longer than the universe has for any of these."""
    check(pattern)
    start = time.process_time()
    assert not matches(pattern, b"a" * 50_000 + b"!")
    assert replace(pattern, "", b"!" * 1_000)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    ("pattern", "substitution", "text", "result"),
    [
        ("^/v1/", "/", b"/v1/a/v1/b", b"/a/v1/b"),
        ("([a-z]+)/([a-z]+)", r"\2/\1", b"/one/two", b"/two/one"),
        ("b", r"<\0>", b"abba", b"a<b><b>a"),
        ("b", r"\\0", b"ab", rb"a\0"),
        ("x*", "-", b"abxd", b"-a-b-d-"),
        ("x*", "-", b"\xffx", b"-\xff-"),
        ("(a)|b", r"[\1]", b"ab", b"[a][]"),
        ("c", "-", b"ab", b"ab"),
    ],
)
def test_every_match_is_replaced(pattern: str, substitution: str, text: bytes, result: bytes) -> None:
    check_substitution(pattern, substitution)
    assert replace(pattern, substitution, text) == result


@pytest.mark.parametrize("substitution", [r"\1", r"\x", "\\", r"a\\\2"])
def test_a_substitution_that_means_nothing_is_refused(substitution: str) -> None:
    with pytest.raises(PatternError, match=r"\w"):
        check_substitution("a", substitution)
