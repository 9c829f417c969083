"""YAML files to resources, with the line of every fault.

A file is taken whole or not at all: every fault in it is listed, and nothing of a file with a fault is used.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from control_plane.resources import document, kinds
from control_plane.resources.check import check
from control_plane.resources.document import Mapping, Node, NotADocument, Scalar, Sequence
from control_plane.resources.errors import MAX_SHOWN, Fault, InvalidResource, quoted
from control_plane.resources.kinds import Kind
from proto.mesh.v1 import api_pb2

MAX_BYTES: Final = 1024 * 1024
MAX_DOCUMENTS: Final = 100
"""As many as one transaction takes (`ApplyRequest.resources`)."""
_TOP: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_DURATION: Final = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?(ms|s|m|h)", re.ASCII)
_UNIT_NS: Final = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_LONGEST_NS: Final = 315_576_000_000 * 10**9
"""As much as google.protobuf.Duration holds."""

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class _Located:
    """A fault and where in the document it is."""

    fault: Fault
    line: int


def load(text: str, file: str) -> list[api_pb2.Resource]:
    """The resources of a file's text. Raises InvalidResource with lines `FILE:LINE: FIELD: SENTENCE (CODE)`."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise InvalidResource([f"{file}: {size} bytes; at most {MAX_BYTES} are read (RMR0001)"])
    try:
        roots = list(document.documents(text))
    except NotADocument as error:
        raise InvalidResource([f"{file}:{error.line}: {error.text} ({error.code})"]) from None
    if not roots:
        raise InvalidResource([f"{file}: holds no resource; write at least one (RMR0003)"])
    if len(roots) > MAX_DOCUMENTS:
        raise InvalidResource([f"{file}: {len(roots)} resources; at most {MAX_DOCUMENTS} go in one file (RMR0001)"])
    lines: list[str] = []
    resources: list[api_pb2.Resource] = []
    first_of: dict[tuple[str, str, str], int] = {}
    for root in roots:
        resource, located = _resource(root)
        lines += [f"{file}:{item.line}: {item.fault}" for item in located]
        if resource is None:
            continue
        resources.append(resource)
        key = (kinds.of(resource).name, resource.metadata.namespace, resource.metadata.name)
        if key in first_of:
            lines.append(
                f"{file}:{root.line}: {kinds.describe(resource)} stands here and in line {first_of[key]}; keep one (RMR0004)"
            )
        first_of.setdefault(key, root.line)
    if lines:
        raise InvalidResource(lines)
    return resources


def _resource(root: Node) -> tuple[api_pb2.Resource | None, list[_Located]]:
    if not isinstance(root, Mapping):
        return None, [_Located(Fault("", f"{_words(root)} where a resource is needed", "RMR0005"), root.line)]
    kind, faults = _kind(root)
    faults += [_unknown(root, (), key, _TOP) for key in root.items if key not in _TOP]
    if kind is None:
        return None, faults
    plain: dict[str, Any] = {}
    for spelled, name in (("metadata", "metadata"), ("spec", kind.field)):
        field = api_pb2.Resource.DESCRIPTOR.fields_by_name[name]
        assert field.message_type is not None
        node = root.items.get(spelled)
        if node is None or (_is_null(node) and spelled == "metadata"):
            faults.append(_Located(Fault(spelled, "is missing; it must be given", "RMR0006"), root.line))
        elif _is_null(node):
            plain[field.json_name] = {}
        else:
            plain[field.json_name] = _message((spelled,), node, field.message_type, faults)
    if faults:
        return None, faults
    resource = api_pb2.Resource()
    json_format.ParseDict(plain, resource)
    resource.metadata.namespace = resource.metadata.namespace or kinds.DEFAULT_NAMESPACE
    found = [_Located(fault, document.at(root, _keys(fault.path))) for fault in check(resource)]
    return (None if found else resource), found


def _kind(root: Mapping) -> tuple[Kind | None, list[_Located]]:
    given = root.items.get("kind")
    kind = next((kind for kind in kinds.KINDS if isinstance(given, Scalar) and kind.name == given.value), None)
    if kind is None:
        names = [kind.name for kind in kinds.KINDS]
        text = f"is missing; give one of {', '.join(names)}" if given is None else _not_one_of("known", given, names)
        return None, [_Located(Fault("kind", text, "RMR0007"), document.at(root, ("kind",)))]
    version = root.items.get("apiVersion")
    if not isinstance(version, Scalar) or version.value != kind.api_version:
        text = "is missing" if version is None else f"{_shown(version)} does not fit {kind.name}"
        fault = Fault("apiVersion", f"{text}; write {kind.api_version}", "RMR0008")
        return kind, [_Located(fault, document.at(root, ("apiVersion",)))]
    return kind, []


# -- by the schema: each function gives the form that `ParseDict` takes, and notes what is wrong ------------------


def _message(path: Path, node: Node, message: Descriptor, faults: list[_Located]) -> Any:
    if message.full_name == "google.protobuf.Duration":
        return _duration(path, node, faults)
    if message.full_name == "google.protobuf.Timestamp":
        return _timestamp(path, node, faults)
    if not isinstance(node, Mapping):
        faults.append(_wrong(path, node, "a mapping"))
        return {}
    fields = {field.json_name: field for field in message.fields}
    plain: dict[str, Any] = {}
    for key, item in node.items.items():
        field = fields.get(key)
        if field is None:
            faults.append(_unknown(node, path, key, list(fields)))
        elif not _is_null(item):
            plain[field.json_name] = _field((*path, key), item, field, faults)
    return plain


def _field(path: Path, node: Node, field: FieldDescriptor, faults: list[_Located]) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(node, Mapping):
            faults.append(_wrong(path, node, "a mapping"))
            return {}
        of = field.message_type.fields_by_name["value"]
        return {key: _scalar((*path, key), item, of, faults) for key, item in node.items.items()}
    if field.is_repeated:
        if not isinstance(node, Sequence):
            faults.append(_wrong(path, node, "a list"))
            return []
        return [_single((*path, number), item, field, faults) for number, item in enumerate(node.items)]
    return _single(path, node, field, faults)


def _single(path: Path, node: Node, field: FieldDescriptor, faults: list[_Located]) -> Any:
    if field.message_type is not None:
        return _message(path, node, field.message_type, faults)
    return _scalar(path, node, field, faults)


def _scalar(path: Path, node: Node, field: FieldDescriptor, faults: list[_Located]) -> Any:
    value = node.value if isinstance(node, Scalar) else None
    if field.enum_type is not None:
        names = [item.name for item in field.enum_type.values]
        if value not in names:
            text = _not_one_of("allowed", node, names)
            faults.append(_Located(Fault(_dotted(path), text, "RMR0009"), node.line))
            return 0
        return value
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            faults.append(_wrong(path, node, "a text"))
            return ""
        return value
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            faults.append(_wrong(path, node, "true or false"))
            return False
        return value
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        if isinstance(value, bool) or not isinstance(value, int | float):
            faults.append(_wrong(path, node, "a number"))
            return 0.0
        return float(value)
    is_unsigned = field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    bits = 32 if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT32) else 64
    least, most = (0, 2**bits - 1) if is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if isinstance(value, bool) or not isinstance(value, int):
        faults.append(_wrong(path, node, "a whole number"))
        return 0
    if not least <= value <= most:
        text = f"{value} is out of range; {least} to {most} are allowed"
        faults.append(_Located(Fault(_dotted(path), text, "RMR0010"), node.line))
        return 0
    return value


def _duration(path: Path, node: Node, faults: list[_Located]) -> str:
    value = node.value if isinstance(node, Scalar) else None
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        whole, fraction, unit = match.groups(default="")
        nanoseconds = (int(whole) * 10**9 + int(fraction.ljust(9, "0"))) * _UNIT_NS[unit] // 10**9
        if nanoseconds <= _LONGEST_NS:
            return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}s"
    faults.append(_wrong(path, node, "a duration", "one such as 1s, 100ms, 5m or 1h"))
    return "0s"


def _timestamp(path: Path, node: Node, faults: list[_Located]) -> str:
    value = node.value if isinstance(node, Scalar) else None
    if isinstance(value, str):
        try:
            Timestamp().FromJsonString(value)
        except ValueError:
            pass
        else:
            return value
    faults.append(_wrong(path, node, "a time", "one such as 2026-01-31T12:00:00Z"))
    return "1970-01-01T00:00:00Z"


# -- where and how to say it --------------------------------------------------------------------------


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys(path: str) -> Path:
    parts = re.findall(r"[^.\[\]]+|\[[^\]]*\]", path)
    return tuple(
        (int(part[1:-1]) if part[1:-1].isdecimal() else part[1:-1]) if part.startswith("[") else part for part in parts
    )


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _words(node: Node) -> str:
    if isinstance(node, Scalar):
        return {bool: "true or false", str: "a text"}.get(type(node.value), "nothing" if _is_null(node) else "a number")
    return "a mapping" if isinstance(node, Mapping) else "a list"


def _shown(node: Node) -> str:
    if not isinstance(node, Scalar):
        return _words(node)
    return quoted(node.text) if isinstance(node.value, str) else node.text[:MAX_SHOWN] or "nothing"


def _wrong(path: Path, node: Node, needed: str, way_out: str = "") -> _Located:
    if needed == "a text" and isinstance(node, Scalar) and not _is_null(node):
        way_out = f"it in quotes: {quoted(node.text)}"
    return _Located(
        Fault(_dotted(path), f"{_shown(node)} is not {needed}; write {way_out or needed}", "RMR0009"), node.line
    )


def _not_one_of(word: str, node: Node, names: list[str]) -> str:
    close = _closest(node.text, names) if isinstance(node, Scalar) else None
    list_of = f"{word}: {', '.join(names)}"
    if close is None:
        return f"{_shown(node)} is not {word}; {list_of}"
    return f"{_shown(node)} is not {word}; did you mean {quoted(close)}? {list_of.capitalize()[0]}{list_of[1:]}"


def _closest(text: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(text[:MAX_SHOWN], list(known), 1)), None)


def _unknown(around: Mapping, path: Path, key: str, known: Iterable[str]) -> _Located:
    close = _closest(key, known)
    hint = f"did you mean {quoted(close)}?" if close is not None else f"known here: {', '.join(known) or 'none'}"
    place = _dotted((*path, quoted(key)[1:-1]))
    return _Located(Fault(place, f"unknown field; {hint}", "RMR0016"), around.lines[key])
