"""`validate.rules` of a message, interpreted over its descriptors: ours and Envoy's alike.

No library checks these on today's protobuf, so this does: one function per family of rules, found once per message type.
A rule that is not interpreted here raises `NotImplementedError` at the first message of its type: a constraint is never
ignored in silence. Messages in `Any` are checked too where their type is known. Paths are in YAML spelling (lowerCamelCase).
"""

import ipaddress
import operator
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from validate import validate_pb2

from control_plane.resources.errors import Fault, quoted

MAX_DEPTH: Final = 100
_CODE: Final = "RMR0010"
_BOUND_NAMES: Final = frozenset(("gt", "gte", "lt", "lte"))
_NUMBER_RULES: Final = _BOUND_NAMES | {"const", "in", "not_in", "ignore_empty"}
_TEXT_LENGTHS: Final = ("min_len", "max_len", "min_bytes", "max_bytes")
_TEXT_FORMS: Final = ("pattern", "well_known_regex", "strict")
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
_INTERPRETED: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(_NUMBERS, _NUMBER_RULES),
    "bool": frozenset(("const",)),
    "string": frozenset(
        ("const", "prefix", "suffix", "in", "not_in", "ip", "ignore_empty", *_TEXT_LENGTHS, *_TEXT_FORMS)
    ),
    "bytes": frozenset(("min_len", "max_len")),
    "enum": frozenset(("const", "defined_only", "in", "not_in")),
    "repeated": frozenset(("min_items", "max_items", "unique", "items", "ignore_empty")),
    "map": frozenset(("min_pairs", "max_pairs", "keys", "values", "ignore_empty")),
    "duration": _BOUND_NAMES | {"required"},
    "any": frozenset(("required",)),
    "timestamp": frozenset(("required",)),
}
"""By family, the rules that this module knows."""
_WELL_KNOWN: Final = {
    # By (name of the rule's value, strict): what a header may look like (validate.proto, KnownRegex; RFC 9110 §5).
    ("HTTP_HEADER_NAME", True): r"^:?[0-9a-zA-Z!#$%&'*+.^_|~`-]+$",
    ("HTTP_HEADER_NAME", False): r"^[^\x00\n\r]*$",
    ("HTTP_HEADER_VALUE", True): r"^[^\x00-\x08\x0a-\x1f\x7f]*$",
    ("HTTP_HEADER_VALUE", False): r"^[^\x00\n\r]*$",
}
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{name}Value"
    for name in ["Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes"]
)
_BOUNDS: Final = (
    ("gt", operator.gt, "more than {} is needed"),
    ("gte", operator.ge, "at least {} is needed"),
    ("lt", operator.lt, "less than {} is allowed"),
    ("lte", operator.le, "at most {} is allowed"),
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
        if field.message_type is not None and not _is_skipped(field):
            yield from _inside(field, value, place, depth)


def _inside(field: FieldDescriptor, value: Any, place: str, depth: int) -> Iterator[Fault]:
    assert field.message_type is not None
    if field.message_type.full_name in _WRAPPERS:
        return
    if field.message_type.GetOptions().map_entry:
        for key, item in sorted(value.items(), key=operator.itemgetter(0)):
            if isinstance(item, Message):
                yield from _whole(item, f"{place}[{key}]", depth + 1)
    elif field.is_repeated:
        for number, item in enumerate(value):
            yield from _whole(item, f"{place}[{number}]", depth + 1)
    else:
        yield from _whole(value, place, depth + 1)


def _whole(message: Message, place: str, depth: int) -> Iterator[Fault]:
    """A contained message; of an `Any`, what is packed in it."""
    if isinstance(message, any_pb2.Any):
        try:
            packed = _unpacked(message)
        except DecodeError:
            yield Fault(place, f"the value is no {message.type_url.rpartition('/')[2]}", _CODE)
            return
        if packed is not None:
            yield from faults(packed, place, depth)
        return
    yield from faults(message, place, depth)


def _unpacked(packed: any_pb2.Any) -> Message | None:
    """The message in an `Any`, None if its type is not loaded. Raises DecodeError."""
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(packed.type_url.rpartition("/")[2])
    except KeyError:
        return None
    return message_factory.GetMessageClass(descriptor).FromString(packed.value)


@cache
def _is_skipped(field: FieldDescriptor) -> bool:
    """True if the schema says that what is inside is not to be checked."""
    options = field.GetOptions()
    return bool(options.HasExtension(validate_pb2.rules) and options.Extensions[validate_pb2.rules].message.skip)


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
        family = rules.WhichOneof("type") if rules is not None else None
        # Of a choice, a member is required only if it is the one that is set.
        is_required = (
            rules is not None
            and field.containing_oneof is None
            and (
                rules.message.required
                or (family in ("duration", "any", "timestamp") and getattr(rules, family).required)
            )
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
    unknown = [rule.name for rule, _ in rules.ListFields() if rule.name not in _INTERPRETED.get(family, ())]
    if unknown:
        raise NotImplementedError(f"{field.full_name}: rule {family}.{unknown[0]} is not interpreted")
    if family in _NUMBERS:
        return lambda value: _number(rules, value)
    match family:
        case "string":
            patterns = _patterns(rules)
            return lambda value: _string(rules, patterns, value)
        case "bytes":
            return lambda value: _bytes(rules, value)
        case "enum":
            assert field.enum_type is not None
            names = {value.number: value.name for value in field.enum_type.values}
            return lambda value: _enum(rules, names, value)
        case "repeated":
            items = _rule(rules.items, field) if rules.HasField("items") else None
            return lambda value: _repeated(rules, items, value)
        case "map":
            assert field.message_type is not None
            parts = {"keys": ("key", rules.keys), "values": ("value", rules.values)}
            inner = {
                word: _rule(part, field.message_type.fields_by_name[name])
                for word, (name, part) in parts.items()
                if rules.HasField(word)
            }
            return lambda value: _map(rules, inner.get("keys"), inner.get("values"), value)
        case "duration":
            return lambda value: _duration(rules, value)
        case "bool":
            return lambda value: _bool(rules, value)
    return None


def _bool(rules: Any, value: bool) -> Iterator[Complaint]:
    if rules.HasField("const") and value != rules.const:
        yield f"must be {str(rules.const).lower()}"


def _number(rules: Any, value: Any) -> Iterator[Complaint]:
    if rules.ignore_empty and not value:
        return
    for name, holds, words in _BOUNDS:
        if rules.HasField(name) and not holds(value, getattr(rules, name)):
            yield f"{value} is out of range; {words.format(getattr(rules, name))}"
    if rules.HasField("const") and value != rules.const:
        yield f"{value} is not allowed; {rules.const} is needed"
    if getattr(rules, "in") and value not in getattr(rules, "in"):
        yield f"{value} is not allowed; allowed: {', '.join(map(str, getattr(rules, 'in')))}"
    if value in rules.not_in:
        yield f"{value} is not allowed; any but {', '.join(map(str, rules.not_in))}"


def _patterns(rules: Any) -> tuple[tuple[re.Pattern[str], str], ...]:
    """The forms that a text must have, each with the words that name it."""
    found = []
    if rules.HasField("pattern"):
        found.append((_compiled(rules.pattern), f"it must match {rules.pattern}"))
    if rules.HasField("well_known_regex"):
        field = rules.DESCRIPTOR.fields_by_name["well_known_regex"]
        name = field.enum_type.values_by_number[rules.well_known_regex].name
        known = _WELL_KNOWN.get((name, rules.strict))
        if known is not None:
            found.append((_compiled(known), f"it must be a valid {name.lower().replace('_', ' ')}"))
    return tuple(found)


def _compiled(pattern: str) -> re.Pattern[str]:
    """As RE2 reads it: `$` is the end of the text, where Python's would let a last newline pass."""
    is_anchored = pattern.endswith("$") and not pattern.endswith(r"\$")
    return re.compile(pattern[:-1] + r"\Z" if is_anchored else pattern, re.ASCII)


def _string(rules: Any, patterns: tuple[tuple[re.Pattern[str], str], ...], value: str) -> Iterator[Complaint]:
    if rules.ignore_empty and not value:
        return
    shown = quoted(value)
    if not value and (rules.min_len or rules.min_bytes):
        yield "is missing; it must be given"
        return
    if len(value) < rules.min_len:
        yield f"{shown} is too short; at least {rules.min_len} characters are needed"
    if len(value.encode()) < rules.min_bytes:
        yield f"{shown} is too short; at least {rules.min_bytes} bytes are needed"
    if rules.HasField("max_len") and len(value) > rules.max_len:
        yield f"{shown} is too long ({len(value)} characters); at most {rules.max_len} are allowed"
    if rules.HasField("max_bytes") and len(value.encode()) > rules.max_bytes:
        yield f"{shown} is too long ({len(value.encode())} bytes); at most {rules.max_bytes} are allowed"
    for pattern, words in patterns:
        if not pattern.search(value):
            yield f"{shown} has a form that is not allowed; {words}"
    yield from _string_choice(rules, shown, value)
    if rules.HasField("prefix") and not value.startswith(rules.prefix):
        yield f'{shown} must begin with "{rules.prefix}"'
    if rules.HasField("suffix") and not value.endswith(rules.suffix):
        yield f'{shown} must end with "{rules.suffix}"'
    if rules.ip and not _is_ip(value):
        yield f"{shown} is no IP address"


def _string_choice(rules: Any, shown: str, value: str) -> Iterator[Complaint]:
    if rules.HasField("const") and value != rules.const:
        yield f'{shown} is not allowed; "{rules.const}" is needed'
    allowed = getattr(rules, "in")
    if allowed and value not in allowed:
        named = " or ".join(f'"{choice}"' for choice in allowed if choice)
        yield f"{shown} is not allowed; allowed: {named}" + (", or leave it out" if "" in allowed else "")
    if value in rules.not_in:
        yield f"{shown} is not allowed"


def _is_ip(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _bytes(rules: Any, value: bytes) -> Iterator[Complaint]:
    if len(value) < rules.min_len:
        yield f"has {len(value)} bytes; at least {rules.min_len} are needed"
    if rules.HasField("max_len") and len(value) > rules.max_len:
        yield f"has {len(value)} bytes; at most {rules.max_len} are allowed"


def _enum(rules: Any, names: dict[int, str], value: int) -> Iterator[Complaint]:
    if rules.defined_only and value not in names:
        allowed = [name for number, name in names.items() if number not in rules.not_in]
        yield f"{value} is not allowed; allowed: {', '.join(allowed)}"
    if rules.HasField("const") and value != rules.const:
        yield f"{names.get(value, value)} is not allowed; {names.get(rules.const, rules.const)} is needed"
    chosen = getattr(rules, "in")
    if value in rules.not_in or (chosen and value not in chosen):
        allowed = [
            name for number, name in names.items() if number not in rules.not_in and (not chosen or number in chosen)
        ]
        yield f"{names.get(value, value)} is not allowed; allowed: {', '.join(allowed)}"


def _repeated(rules: Any, items: Rule | None, value: Any) -> Iterator[Complaint]:
    count = len(value)
    if rules.ignore_empty and not count:
        return
    if count < rules.min_items:
        yield f"has {count} entries; at least {rules.min_items} is needed"
    if rules.HasField("max_items") and count > rules.max_items:
        yield f"has {count} entries; at most {rules.max_items} are allowed"
        return
    if rules.unique:
        seen: list[Any] = []
        for number, item in enumerate(value):
            if item in seen:
                yield f"entry {number} stands twice; keep one"
            seen.append(item)
    if items is not None:
        for number, item in enumerate(value):
            for complaint in items(item):
                yield f"entry {number}: {complaint}"


def _map(rules: Any, keys: Rule | None, values: Rule | None, value: Any) -> Iterator[Complaint]:
    if rules.ignore_empty and not value:
        return
    if len(value) < rules.min_pairs:
        yield f"has {len(value)} entries; at least {rules.min_pairs} is needed"
    if rules.HasField("max_pairs") and len(value) > rules.max_pairs:
        yield f"has {len(value)} entries; at most {rules.max_pairs} are allowed"
        return
    for key, item in sorted(value.items()):
        for complaint in keys(key) if keys is not None else ():
            yield f"key {complaint}"
        for complaint in values(item) if values is not None else ():
            yield f"value of {quoted(str(key))}: {complaint}"


def _seconds(duration: Any) -> float:
    return float(duration.seconds) + float(duration.nanos) / 1e9


def _duration(rules: Any, value: Any) -> Iterator[Complaint]:
    given = _seconds(value)
    for name, holds, words in _BOUNDS:
        if rules.HasField(name):
            bound = _seconds(getattr(rules, name))
            if not holds(given, bound):
                yield f"{given:g}s is out of range; {words.format(f'{bound:g}s')}"
