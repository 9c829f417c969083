"""Envoy's matchers of headers and strings to the proxy's."""

from typing import Any

from sidecar.proxy.config import HeaderMatch
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import regex


def header_match(message: Any, path: str) -> HeaderMatch:
    """route.v3.HeaderMatcher."""
    name = message.name.lower().encode()
    invert = message.invert_match
    specifier = message.WhichOneof("header_match_specifier")
    if specifier == "string_match":
        string = message.string_match
        if string.ignore_case:
            raise ConfigError(f"{path}.string_match.ignore_case", "is not supported here (RMR0114)")
        match string.WhichOneof("match_pattern"):
            case "exact":
                return HeaderMatch(name, exact=string.exact.encode(), invert=invert)
            case "prefix":
                return HeaderMatch(name, prefix=string.prefix.encode(), invert=invert)
            case "suffix":
                return HeaderMatch(name, suffix=string.suffix.encode(), invert=invert)
            case "safe_regex":
                return HeaderMatch(
                    name, regex=regex(string.safe_regex, f"{path}.string_match.safe_regex"), invert=invert
                )
        raise ConfigError(f"{path}.string_match", "a pattern is needed (RMR0114)")
    # Envoy: no specifier means that the header is there.
    return HeaderMatch(name, present=message.present_match if specifier == "present_match" else True, invert=invert)
