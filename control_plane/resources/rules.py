"""`validate.rules` of a message, interpreted over its descriptors: ours and Envoy's alike.

No library checks these on today's protobuf, so this does: one function per family of rules, found once per message type.
Paths are in YAML spelling (lowerCamelCase).
"""

import ipaddress
import operator
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2

from control_plane.resources.errors import Fault

MAX_DEPTH: Final = 100
_CODE: Final = "RMR0010"
_NUMBERS: Final = frozenset(
    [
        "float",
        "double",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "sint32",
        "sint64",
        "fixed32",
        "fixed64",
        "sfixed32",
        "sfixed64",
    ]
)
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value"
    for name in ["Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes"]
)
_BOUNDS: Final = (
    ("gt", operator.gt, "more than"),
    ("gte", operator.ge, "at least"),
    ("lt", operator.lt, "less than"),
    ("lte", operator.le, "at most"),
)

Complaint = str
Rule = Callable[[Any], Iterator[Complaint]]


def faults(message: Message, path: str = "", depth: int = 0) -> Iterator[Fault]:
    """Every fault in a message and what it contains."""
    if depth > MAX_DEPTH:
        yield Fault(path, f"nested deeper than {MAX_DEPTH} levels; flatten it", _CODE)
        return
    for name in _required_oneofs(message.DESCRIPTOR):
        if message.WhichOneof(name) is None:
            choices = " or ".join(field.json_name for field in message.DESCRIPTOR.oneofs_by_name[name].fields)
            yield Fault(path, f"nothing is set for {name}; set {choices}", _CODE)
    for field, is_required, rules in _fields(message.DESCRIPTOR):
        place = f"{path}.{field.json_name}" if path else field.json_name
        if is_required and not message.HasField(field.name):
            yield Fault(place, "is missing; it must be given", _CODE)
            continue
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if rules is not None:
            for complaint in rules(value):
                yield Fault(place, complaint, _CODE)
        if field.message_type is not None:
            yield from _inside(field, value, place, depth)


def _inside(field: FieldDescriptor, value: Any, place: str, depth: int) -> Iterator[Fault]:
    assert field.message_type is not None
    if field.message_type.full_name in _WRAPPERS:
        return
    if field.message_type.GetOptions().map_entry:
        for key, item in value.items():
            if isinstance(item, Message):
                yield from faults(item, f"{place}[{key}]", depth + 1)
    elif field.is_repeated:
        for number, item in enumerate(value):
            yield from faults(item, f"{place}[{number}]", depth + 1)
    else:
        yield from faults(value, place, depth + 1)


@cache
def _required_oneofs(descriptor: Descriptor) -> tuple[str, ...]:
    return tuple(oneof.name for oneof in descriptor.oneofs if oneof.GetOptions().Extensions[validate_pb2.required])


@cache
def _fields(descriptor: Descriptor) -> tuple[tuple[FieldDescriptor, bool, Rule | None], ...]:
    """Per field: (descriptor, is required, what checks its value)."""
    found = []
    for field in descriptor.fields:
        options = field.GetOptions()
        rules = options.Extensions[validate_pb2.rules] if options.HasExtension(validate_pb2.rules) else None
        is_required = rules is not None and (
            rules.message.required or (rules.WhichOneof("type") == "duration" and rules.duration.required)
        )
        if rules is not None or field.message_type is not None:
            found.append((field, is_required, _rule(rules, field) if rules is not None else None))
    return tuple(found)


def _rule(rules: Any, field: FieldDescriptor) -> Rule | None:
    """What checks a field by its rules; None if they only concern what is inside."""
    family = rules.WhichOneof("type")
    rule = _family(family, getattr(rules, family), field) if family else None
    if rule is not None and field.message_type is not None and field.message_type.full_name in _WRAPPERS:
        inner = rule
        return lambda value: inner(value.value)
    return rule


def _family(family: str, rules: Any, field: FieldDescriptor) -> Rule | None:
    if family in _NUMBERS:
        return lambda value: _number(rules, value)
    match family:
        case "string":
            pattern = re.compile(rules.pattern) if rules.HasField("pattern") else None
            return lambda value: _string(rules, pattern, value)
        case "enum":
            assert field.enum_type is not None
            names = {value.number: value.name for value in field.enum_type.values}
            return lambda value: _enum(rules, names, value)
        case "repeated":
            items = _rule(rules.items, field) if rules.HasField("items") else None
            return lambda value: _repeated(rules, items, value)
        case "map":
            return lambda value: _map(rules, value)
        case "duration":
            return lambda value: _duration(rules, value)
        case "bool":
            return lambda value: (
                iter(())
                if not rules.HasField("const") or value == rules.const
                else iter((f"must be {str(rules.const).lower()}",))
            )
    return None


def _number(rules: Any, value: Any) -> Iterator[Complaint]:
    if getattr(rules, "ignore_empty", False) and not value:
        return
    for name, holds, words in _BOUNDS:
        if rules.HasField(name) and not holds(value, getattr(rules, name)):
            yield f"{value} is out of range; {words} {getattr(rules, name)} is needed"
    if rules.HasField("const") and value != rules.const:
        yield f"{value} is not allowed; {rules.const} is needed"
    if getattr(rules, "in") and value not in getattr(rules, "in"):
        yield f"{value} is not allowed; allowed: {', '.join(map(str, getattr(rules, 'in')))}"


def _string(rules: Any, pattern: re.Pattern[str] | None, value: str) -> Iterator[Complaint]:
    if rules.ignore_empty and not value:
        return
    shown = f'"{value if len(value) <= 80 else value[:77] + "..."}"'
    least = max(rules.min_len, rules.min_bytes)
    if len(value) < least:
        yield (
            "is missing; it must be given"
            if not value
            else f"{shown} is too short; at least {least} characters are needed"
        )
        return
    if rules.HasField("max_len") and len(value) > rules.max_len:
        yield f"{shown} is too long ({len(value)} characters); at most {rules.max_len} are allowed"
    if rules.HasField("max_bytes") and len(value.encode()) > rules.max_bytes:
        yield f"{shown} is too long; at most {rules.max_bytes} bytes are allowed"
    if pattern is not None and not pattern.search(value):
        yield f"{shown} has a form that is not allowed; it must match {rules.pattern}"
    allowed = getattr(rules, "in")
    if allowed and value not in allowed:
        named = " or ".join(f'"{choice}"' for choice in allowed if choice)
        yield f"{shown} is not allowed; allowed: {named}" + (", or leave it out" if "" in allowed else "")
    if rules.HasField("prefix") and not value.startswith(rules.prefix):
        yield f'{shown} must begin with "{rules.prefix}"'
    if rules.ip:
        try:
            ipaddress.ip_address(value)
        except ValueError:
            yield f"{shown} is no IP address"


def _enum(rules: Any, names: dict[int, str], value: int) -> Iterator[Complaint]:
    if rules.defined_only and value not in names:
        yield f"{value} is not allowed; allowed: {', '.join(names.values())}"
    if value in rules.not_in:
        yield f"{names.get(value, value)} is not allowed"


def _repeated(rules: Any, items: Rule | None, value: Any) -> Iterator[Complaint]:
    count = len(value)
    if count < rules.min_items:
        yield f"has {count} entries; at least {rules.min_items} is needed"
    if rules.HasField("max_items") and count > rules.max_items:
        yield f"has {count} entries; at most {rules.max_items} are allowed"
    if items is not None:
        for number, item in enumerate(value):
            for complaint in items(item):
                yield f"entry {number}: {complaint}"


def _map(rules: Any, value: Any) -> Iterator[Complaint]:
    if rules.HasField("max_pairs") and len(value) > rules.max_pairs:
        yield f"has {len(value)} entries; at most {rules.max_pairs} are allowed"


def _seconds(duration: Any) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9


def _duration(rules: Any, value: Any) -> Iterator[Complaint]:
    given = _seconds(value)
    for name, holds, words in _BOUNDS:
        if rules.HasField(name):
            bound = _seconds(getattr(rules, name))
            if not holds(given, bound):
                yield f"{given:g}s is out of range; {words} {bound:g}s is needed"
