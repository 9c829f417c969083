"""A message of the schema as Kubernetes writes schemas: structural OpenAPI v3, with `validate.rules` as bounds and CEL.

A rule that has no place in such a schema raises `NotImplementedError` here, when the definitions are made: nothing gets
lost on the way to the API server. Names are the YAML form's (lowerCamelCase), durations its `100ms`, `5m`, `1h`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from validate import validate_pb2

Schema = dict[str, Any]
DURATION: Final = r"^[0-9]{1,12}([.][0-9]{1,9})?(ms|s|m|h)$"
MAX_DURATION_LEN: Final = 25
MAX_TEXT: Final = 1024
"""Characters of a text without a bound of its own."""
_IP: Final = r"^([0-9]{1,3}([.][0-9]{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)$"
"""About: the exact answer is the control plane's. (CEL's `isIP` came with Kubernetes 1.30.)"""
_UNITS: Final = ((3600, "h"), (60, "m"), (1, "s"))
_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What fields mean together (CEL: `x-kubernetes-validations`)."""

    holds: str
    """Over `self`, the message."""
    message: str


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes schemas; knows what descriptors do not hold at run time."""

    comments: Mapping[str, str]
    """By full name of a message or field; of an enum's value by that of the enum and its own."""
    rules: Mapping[str, Sequence[Rule]]
    """By full name of a message."""

    def message(self, descriptor: Descriptor, *, is_spec: bool = False) -> Schema:
        """The schema of a message. Of a spec, choices show the value that they have when nothing is said."""
        known = _WELL_KNOWN.get(descriptor.full_name)
        if known is not None:
            return dict(known)
        properties: Schema = {}
        required = []
        for field in descriptor.fields:
            properties[field.json_name] = self._field(field, is_spec)
            if is_required(field):
                required.append(field.json_name)
        schema: Schema = {"type": "object", **_described(self.comments.get(descriptor.full_name))}
        if required:
            schema["required"] = required
        if properties:
            schema["properties"] = properties
        rules = self.rules.get(descriptor.full_name, ())
        if rules:
            schema["x-kubernetes-validations"] = [{"rule": rule.holds, "message": rule.message} for rule in rules]
        return schema

    def _field(self, field: FieldDescriptor, is_spec: bool) -> Schema:
        found = rules_of(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            schema = self._map(field, found.map)
        elif field.is_repeated:
            schema = self._list(field, found.repeated)
        else:
            schema = self._single(field, found)
            if is_spec and field.enum_type is not None and not field.has_presence:
                schema["default"] = field.enum_type.values_by_number[0].name
        text = self.comments.get(field.full_name) or schema.get("description")
        if field.enum_type is not None:
            text = "\n".join(part for part in (text, self._choices(field.enum_type)) if part)
        schema.pop("description", None)
        return {"type": schema.pop("type"), **_described(text), **schema}

    def _choices(self, enum: EnumDescriptor) -> str:
        said = [(value.name, self.comments.get(f"{enum.full_name}.{value.name}")) for value in enum.values]
        return "\n".join(f"`{name}`: {text}" for name, text in said if text)

    def _list(self, field: FieldDescriptor, rules: Any) -> Schema:
        _refuse(field, "repeated", rules, ("min_items", "max_items", "items"))
        schema: Schema = {"type": "array"}
        if rules.min_items:
            schema["minItems"] = rules.min_items
        if rules.HasField("max_items"):
            schema["maxItems"] = rules.max_items
        return {**schema, "items": self._single(field, rules.items), "x-kubernetes-list-type": "atomic"}

    def _map(self, field: FieldDescriptor, rules: Any) -> Schema:
        _refuse(field, "map", rules, ("max_pairs", "keys", "values"))
        assert field.message_type is not None
        schema: Schema = {"type": "object"}
        if rules.HasField("max_pairs"):
            schema["maxProperties"] = rules.max_pairs
        values = self._single(field.message_type.fields_by_name["value"], rules.values)
        schema["additionalProperties"] = values
        _refuse(field, "string", rules.keys.string, ("min_len", "max_len", "pattern"))
        keys = rules.keys.string
        lengths = []
        if keys.min_len:
            lengths.append(f"size(key) >= {keys.min_len}")
        if keys.HasField("max_len"):
            lengths.append(f"size(key) <= {keys.max_len}")
        if lengths:
            words = f"keys have {keys.min_len or 0} to {keys.max_len} characters"
            schema["x-kubernetes-validations"] = [{"rule": f"self.all(key, {' && '.join(lengths)})", "message": words}]
        return schema

    def _single(self, field: FieldDescriptor, rules: Any) -> Schema:
        if field.message_type is not None:
            schema = self.message(field.message_type)
            if field.message_type.full_name == "google.protobuf.Duration":
                schema |= _duration(rules.duration)
            return schema
        family = rules.WhichOneof("type")
        if field.enum_type is not None:
            return _enum(field, rules.enum)
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return _string(field, rules.string)
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return {"type": "boolean"}
        if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
            return {"type": "number", "format": "double", **_bounds(field, "double", rules.double)}
        if field.cpp_type in _INTEGERS:
            least, most = _INTEGERS[field.cpp_type]
            ranged = _bounds(field, family, getattr(rules, family)) if family else {}
            bounds: Schema = {"minimum": least, "maximum": most} if least == 0 else {}
            return {"type": "integer", "format": "int64", **bounds, **ranged}
        raise NotImplementedError(f"{field.full_name}: no schema is made for its type")


_WELL_KNOWN: Final[Mapping[str, Schema]] = {
    "google.protobuf.Duration": {"type": "string", "pattern": DURATION, "maxLength": MAX_DURATION_LEN},
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
}


def rules_of(field: FieldDescriptor) -> Any:
    """`validate.rules` of a field; empty if it has none."""
    return field.GetOptions().Extensions[validate_pb2.rules]


def is_required(field: FieldDescriptor) -> bool:
    """True if a message without this field is not valid: what proto3 takes for nothing said is not allowed by its rules."""
    rules = rules_of(field)
    family = rules.WhichOneof("type")
    if rules.message.required:
        return True
    if family is None or (field.has_presence and field.message_type is None):
        return False
    found = getattr(rules, family)
    if field.is_repeated:
        return bool(family == "repeated" and found.min_items)
    if family == "string":
        choices = getattr(found, "in")
        return bool(found.min_len or found.ip or (choices and "" not in choices))
    if family == "enum":
        return 0 in found.not_in
    if family == "duration":
        return bool(found.required)
    return bool(found.HasField("gte") and found.gte > 0)


def _described(text: str | None) -> Schema:
    return {"description": text} if text else {}


def _refuse(field: FieldDescriptor, family: str, rules: Any, known: Sequence[str]) -> None:
    for rule, _ in rules.ListFields():
        if rule.name not in known:
            raise NotImplementedError(f"{field.full_name}: rule {family}.{rule.name} has no place in a schema yet")


def _bounds(field: FieldDescriptor, family: str, rules: Any) -> Schema:
    _refuse(field, family, rules, ("gte", "lte"))
    found: Schema = {}
    if rules.HasField("gte"):
        found["minimum"] = rules.gte
    if rules.HasField("lte"):
        found["maximum"] = rules.lte
    return {name: int(bound) if bound == int(bound) else bound for name, bound in found.items()}


def _string(field: FieldDescriptor, rules: Any) -> Schema:
    _refuse(field, "string", rules, ("min_len", "max_len", "pattern", "in", "ip"))
    schema: Schema = {"type": "string"}
    choices = list(getattr(rules, "in"))
    if choices:
        return {**schema, "enum": choices}
    if rules.min_len:
        schema["minLength"] = rules.min_len
    if rules.ip:
        return {**schema, "maxLength": 45, "pattern": _IP}
    schema["maxLength"] = rules.max_len if rules.HasField("max_len") else MAX_TEXT
    if rules.HasField("pattern"):
        schema["pattern"] = rules.pattern
    return schema


def _enum(field: FieldDescriptor, rules: Any) -> Schema:
    _refuse(field, "enum", rules, ("defined_only", "not_in"))
    assert field.enum_type is not None
    return {"type": "string", "enum": [each.name for each in field.enum_type.values if each.number not in rules.not_in]}


def _duration(rules: Any) -> Schema:
    """Bounds of a duration, which only CEL can compare."""
    unknown = [rule.name for rule, _ in rules.ListFields() if rule.name not in ("gte", "lte", "required")]
    if unknown:
        raise NotImplementedError(f"rule duration.{unknown[0]} has no place in a schema yet")
    holds, words = [], []
    if rules.HasField("gte") and (rules.gte.seconds or rules.gte.nanos):
        least = shown(rules.gte)
        holds.append(f"duration(self) >= duration('{least}')")
        words.append(f"at least {least}")
    if rules.HasField("lte"):
        most = shown(rules.lte)
        holds.append(f"duration(self) <= duration('{most}')")
        words.append(f"at most {most}")
    if not holds:
        return {}
    return {"x-kubernetes-validations": [{"rule": " && ".join(holds), "message": ", ".join(words)}]}


def shown(duration: Any) -> str:
    """A duration as users write it: `1ms`, `5m`, `24h`."""
    if duration.nanos:
        return f"{duration.seconds * 1000 + duration.nanos // 10**6}ms"
    for size, unit in _UNITS:
        if duration.seconds and duration.seconds % size == 0:
            return f"{duration.seconds // size}{unit}"
    return f"{duration.seconds}s"


def comments_of(files: Any) -> dict[str, str]:
    """The comments of a FileDescriptorSet that was made with source information, by full name."""
    found: dict[str, str] = {}
    for file in files.file:
        names = dict(_places(file))
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            text = (location.leading_comments or location.trailing_comments).strip()
            if name is not None and text:
                found[name] = _as_text(text)
    return found


def _as_text(comment: str) -> str:
    """A comment without its line breaks; what stands apart stays apart."""
    paragraphs = re.split(r"\n\s*\n", comment)
    return "\n\n".join(" ".join(line.strip() for line in part.splitlines()) for part in paragraphs)


def _places(file: Any) -> list[tuple[tuple[int, ...], str]]:
    """Full names by their path in the file (descriptor.proto: SourceCodeInfo.Location)."""
    found: list[tuple[tuple[int, ...], str]] = []

    def enum(each: Any, path: tuple[int, ...], around: str) -> None:
        found.append((path, f"{around}.{each.name}"))
        found.extend(
            ((*path, 2, number), f"{around}.{each.name}.{value.name}") for number, value in enumerate(each.value)
        )

    def message(each: Any, path: tuple[int, ...], around: str) -> None:
        name = f"{around}.{each.name}"
        found.append((path, name))
        found.extend(((*path, 2, number), f"{name}.{field.name}") for number, field in enumerate(each.field))
        _every(each.nested_type, 3, path, name, message)
        _every(each.enum_type, 4, path, name, enum)

    _every(file.message_type, 4, (), file.package, message)
    _every(file.enum_type, 5, (), file.package, enum)
    return found


def _every(
    items: Sequence[Any],
    tag: int,
    path: tuple[int, ...],
    around: str,
    take: Callable[[Any, tuple[int, ...], str], None],
) -> None:
    for number, item in enumerate(items):
        take(item, (*path, tag, number), around)
