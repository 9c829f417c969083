"""YAML files to resources, with the line of every fault.

A file is taken whole or not at all: every fault in it is listed, and nothing of a file with a fault is used.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from control_plane.resources import kinds
from control_plane.resources.check import check
from control_plane.resources.errors import Fault, InvalidResource
from control_plane.resources.kinds import Kind
from proto.mesh.v1 import api_pb2

MAX_BYTES: Final = 1024 * 1024
MAX_DOCUMENTS: Final = 100
"""As many as one transaction takes (`ApplyRequest.resources`)."""
MAX_DEPTH: Final = 20
MAX_NODES: Final = 50_000
"""Values in a file, aliases counted each time: a few bytes of YAML can stand for billions."""
_TOP: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h)$")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TYPE_WORDS: Final = {
    dict: "a mapping",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


@dataclass(frozen=True, slots=True)
class _Located:
    """A fault and where in the document it is."""

    fault: Fault
    line: int


def load(text: str, file: str) -> list[api_pb2.Resource]:
    """The resources of a file's text. Raises InvalidResource with lines `FILE:LINE: FIELD: SENTENCE (CODE)`."""
    if len(text.encode()) > MAX_BYTES:
        raise InvalidResource([f"{file}: {len(text.encode())} bytes; at most {MAX_BYTES} are read (RMR0001)"])
    try:
        documents = [document for document in YAML(typ="rt").load_all(text) if document is not None]
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        line = mark.line + 1 if mark is not None else 1
        problem = (error.problem if isinstance(error, MarkedYAMLError) and error.problem else str(error)).split("\n")[0]
        raise InvalidResource([f"{file}:{line}: is no YAML: {problem} (RMR0002)"]) from None
    if not documents:
        raise InvalidResource([f"{file}: holds no resource; write at least one (RMR0003)"])
    if len(documents) > MAX_DOCUMENTS:
        raise InvalidResource([f"{file}: {len(documents)} resources; at most {MAX_DOCUMENTS} go in one file (RMR0001)"])
    lines: list[str] = []
    resources: list[api_pb2.Resource] = []
    first_of: dict[tuple[str, str, str], int] = {}
    for document in documents:
        resource, located = _document(document)
        lines += [f"{file}:{item.line}: {item.fault}" for item in located]
        if resource is None:
            continue
        resources.append(resource)
        key = (kinds.of(resource).name, resource.metadata.namespace, resource.metadata.name)
        line = _line(document, ())
        if key in first_of:
            lines.append(
                f"{file}:{line}: {kinds.describe(resource)} stands here and in line {first_of[key]}; keep one (RMR0004)"
            )
        first_of.setdefault(key, line)
    if lines:
        raise InvalidResource(lines)
    return resources


def _document(document: Any) -> tuple[api_pb2.Resource | None, list[_Located]]:
    if not isinstance(document, CommentedMap):
        line = _line(document, ())
        return None, [_Located(Fault("", f"{_words(document)} where a resource is needed", "RMR0005"), line)]
    if _count(document, 0) > MAX_NODES:
        return None, [
            _Located(Fault("", f"more than {MAX_NODES} values, or nested deeper than {MAX_DEPTH}", "RMR0001"), 1)
        ]
    kind, faults = _kind(document)
    for key in document:
        if key not in _TOP:
            faults.append(_unknown(document, (), str(key), _TOP))
    if kind is None:
        return None, faults
    body = {"metadata": document.get("metadata"), kind.field: document.get("spec")}
    plain: dict[str, Any] = {}
    for name, value in body.items():
        field = api_pb2.Resource.DESCRIPTOR.fields_by_name[name]
        spelled = "metadata" if name == "metadata" else "spec"
        if value is None:
            if spelled not in document or name == "metadata":
                faults.append(_Located(Fault(spelled, "is missing; it must be given", "RMR0006"), _line(document, ())))
            value = CommentedMap()
        assert field.message_type is not None
        plain[field.json_name] = _message(document, (spelled,), value, field.message_type, faults)
    if faults:
        return None, faults
    resource = api_pb2.Resource()
    json_format.ParseDict(plain, resource)
    resource.metadata.namespace = resource.metadata.namespace or kinds.DEFAULT_NAMESPACE
    found = [_Located(fault, _line(document, _keys(fault.path))) for fault in check(resource)]
    return (None if found else resource), found


def _kind(document: CommentedMap) -> tuple[Kind | None, list[_Located]]:
    given = document.get("kind")
    kind = next((kind for kind in kinds.KINDS if kind.name == given), None)
    if kind is None:
        names = [kind.name for kind in kinds.KINDS]
        text = (
            "is missing; give one of "
            if given is None
            else f'"{given}" is not known{_meant(str(given), names)}; known: '
        )
        return None, [_Located(Fault("kind", text + ", ".join(names), "RMR0007"), _line(document, ("kind",)))]
    version = document.get("apiVersion")
    if version != kind.api_version:
        text = "is missing" if version is None else f'"{version}" does not fit {kind.name}'
        fault = Fault("apiVersion", f"{text}; write {kind.api_version}", "RMR0008")
        return kind, [_Located(fault, _line(document, ("apiVersion",)))]
    return kind, []


def _message(root: Any, path: tuple[str | int, ...], value: Any, message: Descriptor, faults: list[_Located]) -> Any:
    """A mapping checked against a message type, in the form that `ParseDict` takes."""
    if message.full_name == "google.protobuf.Duration":
        return _duration(root, path, value, faults)
    if not isinstance(value, CommentedMap):
        faults.append(_wrong(root, path, value, "a mapping"))
        return {}
    fields = {field.json_name: field for field in message.fields}
    plain: dict[str, Any] = {}
    for key, item in value.items():
        field = fields.get(str(key))
        if field is None:
            faults.append(_unknown(root, path, str(key), list(fields)))
        elif item is not None:
            plain[field.json_name] = _field(root, (*path, str(key)), item, field, faults)
    return plain


def _field(root: Any, path: tuple[str | int, ...], value: Any, field: FieldDescriptor, faults: list[_Located]) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(value, CommentedMap):
            faults.append(_wrong(root, path, value, "a mapping"))
            return {}
        of = field.message_type.fields_by_name["value"]
        return {str(key): _scalar(root, (*path, str(key)), item, of, faults) for key, item in value.items()}
    if field.is_repeated:
        if not isinstance(value, CommentedSeq):
            faults.append(_wrong(root, path, value, "a list"))
            return []
        return [_single(root, (*path, number), item, field, faults) for number, item in enumerate(value)]
    return _single(root, path, value, field, faults)


def _single(root: Any, path: tuple[str | int, ...], value: Any, field: FieldDescriptor, faults: list[_Located]) -> Any:
    if field.message_type is not None:
        return _message(root, path, value, field.message_type, faults)
    return _scalar(root, path, value, field, faults)


def _scalar(root: Any, path: tuple[str | int, ...], value: Any, field: FieldDescriptor, faults: list[_Located]) -> Any:
    if field.enum_type is not None:
        names = [item.name for item in field.enum_type.values]
        if value not in names:
            text = f'"{value}" is not allowed{_meant(str(value), names)}; allowed: {", ".join(names)}'
            faults.append(_Located(Fault(_dotted(path), text, "RMR0009"), _line(root, path)))
            return 0
        return str(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            faults.append(_wrong(root, path, value, "a text"))
            return ""
        return str(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            faults.append(_wrong(root, path, value, "true or false"))
        return bool(value)
    is_unsigned = field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    bits = 32 if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_INT32) else 64
    least, most = (0, 2**bits - 1) if is_unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if isinstance(value, bool) or not isinstance(value, int):
        faults.append(_wrong(root, path, value, "a whole number"))
        return 0
    if not least <= value <= most:
        text = f"{value} is out of range; {least} to {most} are allowed"
        faults.append(_Located(Fault(_dotted(path), text, "RMR0010"), _line(root, path)))
        return 0
    return int(value)


def _duration(root: Any, path: tuple[str | int, ...], value: Any, faults: list[_Located]) -> str:
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None or float(match[1]) * _UNIT_S[match[2]] > 315_576_000_000:
        faults.append(_wrong(root, path, value, "a duration such as 1s, 100ms, 5m or 1h"))
        return "0s"
    return f"{float(match[1]) * _UNIT_S[match[2]]:.9f}s"


# -- where and how to say it --------------------------------------------------------------------------


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys(path: str) -> tuple[str | int, ...]:
    parts = re.findall(r"[^.\[\]]+|\[[^\]]*\]", path)
    return tuple(
        (int(part[1:-1]) if part[1:-1].isdigit() else part[1:-1]) if part.startswith("[") else part for part in parts
    )


def _line(root: Any, path: tuple[str | int, ...]) -> int:
    """The line of a field, or of the nearest thing around it that is there; from 1."""
    line = int(root.lc.line) if hasattr(root, "lc") else 0
    node = root
    for part in path:
        if isinstance(node, CommentedMap) and part in node:
            line = int(node.lc.key(part)[0])
        elif isinstance(node, CommentedSeq) and isinstance(part, int) and part < len(node):
            line = int(node.lc.item(part)[0])
        else:
            break
        node = node[part]
    return line + 1


def _words(value: Any) -> str:
    for kind, words in _TYPE_WORDS.items():
        if isinstance(value, kind):
            return words
    return "nothing" if value is None else f"a {type(value).__name__}"


def _wrong(root: Any, path: tuple[str | int, ...], value: Any, needed: str) -> _Located:
    shown = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, CommentedMap | CommentedSeq):
        shown = _words(value)
    return _Located(Fault(_dotted(path), f"{shown} is not {needed}; write {needed}", "RMR0009"), _line(root, path))


def _meant(given: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(given, known, 1)
    return f'; did you mean "{close[0]}"?' if close else ""


def _unknown(root: Any, path: tuple[str | int, ...], key: str, known: list[str] | tuple[str, ...]) -> _Located:
    hint = _meant(key, known) or f"; known here: {', '.join(known) or 'none'}"
    return _Located(Fault(_dotted((*path, key)), f"unknown field{hint}", "RMR0016"), _line(root, (*path, key)))


def _count(value: Any, depth: int) -> int:
    """How many values there are, every use of an alias counted; stops counting beyond MAX_NODES."""
    if depth > MAX_DEPTH:
        return MAX_NODES + 1
    total = 1
    for item in _children(value):
        total += _count(item, depth + 1)
        if total > MAX_NODES:
            return total
    return total


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, CommentedMap):
        yield from value.values()
    elif isinstance(value, CommentedSeq):
        yield from value
