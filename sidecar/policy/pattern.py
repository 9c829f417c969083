"""Regular expressions as Envoy has them: RE2, each byte on the wire a character (Latin-1), in time that grows with the text and no faster.

Python's `re` tries every way to match: a pattern such as `(a+)+b` and thirty letters of a stranger's choice would stop the process.
"""

from functools import lru_cache
from typing import Any, Final

import re2

MAX_COMPILED: Final = 4096
"""Patterns that are kept ready; one more is made again when it is asked for."""
_OPTIONS: Final = re2.Options()
_OPTIONS.encoding = re2.Options.Encoding.LATIN1
_OPTIONS.log_errors = False  # to standard error; the exception says it


class PatternError(Exception):
    """The text is no pattern, or no substitution for it; says why."""


@lru_cache(MAX_COMPILED)
def _compiled(pattern: str) -> Any:
    return re2.compile(pattern.encode(), _OPTIONS)


def check(pattern: str) -> None:
    """Raises PatternError."""
    try:
        _compiled(pattern)
    except re2.error as error:
        said = error.args[0] if error.args else str(error)
        raise PatternError(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)) from None


def check_substitution(pattern: str, substitution: str) -> None:
    """Raises PatternError if RE2 would not take it: a backslash is followed by the number of a group, or by a backslash."""
    groups = _compiled(pattern).groups
    at = 0
    while (at := substitution.find("\\", at)) >= 0:
        escaped = substitution[at + 1 : at + 2]
        if escaped != "\\" and not (escaped.isascii() and escaped.isdigit()):
            raise PatternError("a backslash stands before the number of a group, or before another one")
        if escaped != "\\" and int(escaped) > groups:
            raise PatternError(f"it names a group that is not there: {groups} are")
        at += 2


def matches(pattern: str, text: bytes) -> bool:
    """True if the whole text fits."""
    return _compiled(pattern).fullmatch(text) is not None


def replace(pattern: str, substitution: str, text: bytes) -> bytes:
    r"""Every match replaced (RE2::GlobalReplace): \1 is a group, \0 all of it, \\ a backslash."""
    compiled = _compiled(pattern)
    parts: list[bytes] = []
    at, last_end = 0, -1
    while at <= len(text):
        found = compiled.search(text, at)
        if found is None:
            break
        parts.append(text[at : found.start()])
        at = found.end()
        if found.start() == at == last_end:  # nothing, right behind the last match: that is none
            parts.append(text[at : at + 1])
            at += 1
            continue
        parts.append(_expanded(substitution, found))
        last_end = at
    parts.append(text[at:])
    return b"".join(parts)


def _expanded(substitution: str, found: Any) -> bytes:
    parts: list[bytes] = []
    at = 0
    while (escape := substitution.find("\\", at)) >= 0:
        escaped = substitution[escape + 1]
        parts += [substitution[at:escape].encode(), b"\\" if escaped == "\\" else found.group(int(escaped)) or b""]
        at = escape + 2
    return b"".join([*parts, substitution[at:].encode()])
