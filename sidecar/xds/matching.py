"""Envoy's matchers of headers, query parameters and strings to the proxy's."""

from dataclasses import replace
from typing import Any

from sidecar.proxy.config import HeaderMatch
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import regex


def header_match(message: Any, path: str) -> HeaderMatch:
    """route.v3.HeaderMatcher."""
    found = HeaderMatch(
        message.name.lower().encode(),
        invert=message.invert_match,
        missing_is_empty=message.treat_missing_header_as_empty,
    )
    match message.WhichOneof("header_match_specifier"):
        case "string_match":
            return _string(found, message.string_match, f"{path}.string_match")
        case "range_match":
            return replace(found, between=(message.range_match.start, message.range_match.end))
        case "present_match":
            return replace(found, present=message.present_match)
    # Envoy: no specifier means that the header is there.
    return replace(found, present=True)


def string_match(message: Any, path: str) -> HeaderMatch:
    """type.matcher.v3.StringMatcher, of a value that has no name."""
    return _string(HeaderMatch(b""), message, path)


def query_match(message: Any, path: str) -> HeaderMatch:
    """route.v3.QueryParameterMatcher."""
    found = HeaderMatch(message.name.encode())
    match message.WhichOneof("query_parameter_match_specifier"):
        case "string_match":
            return _string(found, message.string_match, f"{path}.string_match")
        case "present_match":
            return replace(found, present=message.present_match)
    return replace(found, present=True)


def _string(found: HeaderMatch, message: Any, path: str) -> HeaderMatch:
    """type.matcher.v3.StringMatcher."""
    form = message.WhichOneof("match_pattern")
    if form == "safe_regex":
        # Envoy: ignore_case says nothing of a regular expression.
        return replace(found, regex=regex(message.safe_regex, f"{path}.safe_regex"))
    if form not in ("exact", "prefix", "suffix", "contains"):
        raise ConfigError(path, "exact, prefix, suffix, contains or safe_regex is needed (RMR0114)")
    text = getattr(message, form)
    pattern = (text.lower() if message.ignore_case else text).encode()
    return replace(
        found,
        ignore_case=message.ignore_case,
        exact=pattern if form == "exact" else None,
        prefix=pattern if form == "prefix" else None,
        suffix=pattern if form == "suffix" else None,
        contains=pattern if form == "contains" else None,
    )
