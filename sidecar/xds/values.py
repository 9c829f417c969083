"""Small values inside Envoy's messages."""

from typing import Any, Final

from sidecar.policy import pattern
from sidecar.policy.pattern import PatternError
from sidecar.xds.supported import ConfigError

_DENOMINATORS: Final = {0: 100, 1: 10_000, 2: 1_000_000}


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
        pattern.check(matcher.regex)
    except PatternError as error:
        raise ConfigError(f"{path}.regex", f'"{matcher.regex}" is no regular expression: {error} (RMR0104)') from None
    return str(matcher.regex)


def rewriting(message: Any, path: str) -> tuple[str, str]:
    """A RegexMatchAndSubstitute's pattern and what takes the place of each match. Raises ConfigError."""
    found = regex(message.pattern, f"{path}.pattern")
    try:
        pattern.check_substitution(found, message.substitution)
    except PatternError as error:
        raise ConfigError(f"{path}.substitution", f'"{message.substitution}": {error} (RMR0104)') from None
    return found, str(message.substitution)


def fraction(message: Any) -> float:
    """A RuntimeFractionalPercent's default, 0 to 1; nothing is changed at run time here."""
    value = message.default_value
    return min(1.0, float(value.numerator) / _DENOMINATORS[value.denominator])
