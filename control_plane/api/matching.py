"""Envoy's matchers on a node: type.matcher.v3.NodeMatcher and what it is made of. Pure."""

import re
from collections.abc import Iterable
from typing import Any, Final

import grpc

from control_plane.api.refused import Refused
from control_plane.resources import regex, rules

MAX_MATCHERS: Final = 16
MAX_DEPTH: Final = 8
"""Of value matchers inside of each other."""
MAX_PATTERN: Final = 256
_NOTHING: Final = object()


class Matcher:
    """Says which nodes a request means: any of its matchers must match; none means every node."""

    def __init__(self, matchers: Iterable[Any]) -> None:
        """From type.matcher.v3.NodeMatcher. Raises Refused."""
        self._matchers = list(matchers)
        if len(self._matchers) > MAX_MATCHERS:
            raise _bad(f"{len(self._matchers)} node matchers; at most {MAX_MATCHERS} are taken")
        for number, matcher in enumerate(self._matchers):
            path = f"node_matchers[{number}]"
            for fault in rules.faults(matcher):
                raise _bad(f"{path}.{fault}")
            if matcher.HasField("node_id"):
                _check_string(f"{path}.node_id", matcher.node_id)
            if len(matcher.node_metadatas) > MAX_MATCHERS:
                raise _bad(f"{path}.node_metadatas: more than {MAX_MATCHERS}")
            for place, each in enumerate(matcher.node_metadatas):
                _check_value(f"{path}.node_metadatas[{place}].value", each.value, 0)

    def matches(self, node: Any) -> bool:
        """True for a node (core.v3.Node) that is meant."""
        return not self._matchers or any(_matches_node(matcher, node) for matcher in self._matchers)


def _bad(text: str) -> Refused:
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def _check_string(path: str, matcher: Any) -> None:
    kind = matcher.WhichOneof("match_pattern")
    if kind == "custom":
        raise _bad(f"{path}.custom: is not available here; use exact, prefix, suffix, contains or safe_regex")
    if kind == "safe_regex":
        pattern = matcher.safe_regex.regex
        reason = "it is too long" if len(pattern) > MAX_PATTERN else regex.fault(pattern)
        if reason is None and not regex.is_quick(pattern):
            reason = "it repeats repetitions or choices, or has many repetitions"
        if reason is not None:
            raise _bad(f"{path}.safe_regex: a pattern that is not taken: {reason}")


def _check_value(path: str, matcher: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _bad(f"{path}: nested deeper than {MAX_DEPTH} levels")
    match matcher.WhichOneof("match_pattern"):
        case "string_match":
            _check_string(f"{path}.string_match", matcher.string_match)
        case "list_match":
            _check_value(f"{path}.list_match.one_of", matcher.list_match.one_of, depth + 1)
        case "or_match":
            if len(matcher.or_match.value_matchers) > MAX_MATCHERS:
                raise _bad(f"{path}.or_match: more than {MAX_MATCHERS} matchers")
            for number, each in enumerate(matcher.or_match.value_matchers):
                _check_value(f"{path}.or_match.value_matchers[{number}]", each, depth + 1)


def _matches_node(matcher: Any, node: Any) -> bool:
    if matcher.HasField("node_id") and not _matches_string(matcher.node_id, node.id):
        return False
    return all(
        _matches_value(each.value, _at(node.metadata, [step.key for step in each.path]))
        for each in matcher.node_metadatas
    )


def _at(struct: Any, path: list[str]) -> Any:
    """The value of a google.protobuf.Struct that a path leads to."""
    for number, key in enumerate(path):
        if key not in struct.fields:
            return _NOTHING
        value = struct.fields[key]
        if number == len(path) - 1:
            return value
        if value.WhichOneof("kind") != "struct_value":
            return _NOTHING
        struct = value.struct_value
    return _NOTHING


def _matches_value(matcher: Any, value: Any) -> bool:
    """By type.matcher.v3.ValueMatcher; a value of another kind does not match."""
    pattern = matcher.WhichOneof("match_pattern")
    if value is _NOTHING:
        return (
            False
            if pattern != "or_match"
            else any(_matches_value(each, value) for each in matcher.or_match.value_matchers)
        )
    kind = value.WhichOneof("kind")
    match pattern:
        case "null_match":
            return bool(kind == "null_value")
        case "double_match":
            return kind == "number_value" and _matches_number(matcher.double_match, value.number_value)
        case "string_match":
            return kind == "string_value" and _matches_string(matcher.string_match, value.string_value)
        case "bool_match":
            return kind == "bool_value" and bool(value.bool_value == matcher.bool_match)
        case "present_match":
            return bool(matcher.present_match)
        case "list_match":
            values = value.list_value.values if kind == "list_value" else ()
            return any(_matches_value(matcher.list_match.one_of, each) for each in values)
        case _:
            return any(_matches_value(each, value) for each in matcher.or_match.value_matchers)


def _matches_number(matcher: Any, number: float) -> bool:
    if matcher.HasField("range"):
        return bool(matcher.range.start <= number < matcher.range.end)
    return bool(matcher.exact == number)


def _matches_string(matcher: Any, text: str) -> bool:
    kind = matcher.WhichOneof("match_pattern")
    if kind == "safe_regex":  # which ignore_case does not concern
        return re.fullmatch(matcher.safe_regex.regex, text) is not None
    wanted = getattr(matcher, kind)
    if matcher.ignore_case:
        wanted, text = wanted.lower(), text.lower()
    match kind:
        case "exact":
            return bool(text == wanted)
        case "prefix":
            return text.startswith(wanted)
        case "suffix":
            return text.endswith(wanted)
        case _:
            return wanted in text
