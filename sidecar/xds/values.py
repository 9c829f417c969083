"""Small values inside Envoy's messages."""

import re
from typing import Any

from sidecar.xds.supported import ConfigError


def seconds(duration: Any) -> float:
    """A Duration."""
    return float(duration.seconds) + float(duration.nanos) / 1e9


def seconds_or(message: Any, field: str, unset: float) -> float:
    """The Duration in a field, or what holds if the field is not set."""
    return seconds(getattr(message, field)) if message.HasField(field) else unset


def number_or(message: Any, field: str, unset: int) -> int:
    """The wrapped number in a field, or what holds if the field is not set."""
    return int(getattr(message, field).value) if message.HasField(field) else unset


def regex(matcher: Any, path: str) -> str:
    """A RegexMatcher's pattern. Raises ConfigError."""
    try:
        re.compile(matcher.regex)
    except re.error as error:
        raise ConfigError(f"{path}.regex", f'"{matcher.regex}" is no regular expression: {error} (RMR0104)') from None
    return str(matcher.regex)
