"""YAML text to values that know their line (YAML 1.2, core schema).

Built from the parser's events, so nothing comes to be that a resource cannot hold: no objects, no dates, no tags. An alias
shares the value that it names; its size counts each time, so a few bytes cannot stand for billions of values.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from control_plane.resources.errors import quoted

MAX_DEPTH: Final = 20
MAX_VALUES: Final = 50_000
"""In one document, aliases counted each time."""
MAX_DIGITS: Final = 40
"""A longer whole number is read as a floating one: no field holds it."""
_TEXT_TAG: Final = "tag:yaml.org,2002:str"
_MERGE: Final = "<<"
_WORDS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_DECIMAL: Final = re.compile(rf"[-+]?[0-9]{{1,{MAX_DIGITS}}}", re.ASCII)
_OTHER_BASE: Final = re.compile(rf"0(?:x[0-9a-fA-F]{{1,{MAX_DIGITS}}}|o[0-7]{{1,{MAX_DIGITS}}})", re.ASCII)
_FLOAT: Final = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)", re.ASCII
)


class NotADocument(Exception):
    """Text that is no YAML, or more than is read. `line` counts from 1."""

    def __init__(self, line: int, text: str, code: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text
        self.code = code


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value."""

    line: int
    """Where it stands; of a field's value, where the field's name stands."""
    text: str
    """As written, without quotes."""
    value: str | int | float | bool | None
    is_plain: bool = False
    """Written without quotes or tag."""
    size: int = 1
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: "tuple[Node, ...]"
    size: int
    """Values in it and below, itself included."""
    depth: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Fields with their values."""

    line: int
    items: "dict[str, Node]"
    lines: dict[str, int]
    """Of each key."""
    size: int
    depth: int


Node = Scalar | Sequence | Mapping


def documents(text: str) -> Iterator[Node]:
    """The documents of a text, empty ones left out. Raises NotADocument."""
    builder = _Builder()
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if isinstance(event, DocumentEndEvent):
                root = builder.root
                if root is not None and not (isinstance(root, Scalar) and root.value is None):
                    yield root
            else:
                builder.take(event)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise NotADocument(line, f"is no YAML: {(error.problem or str(error)).splitlines()[0]}", "RMR0002") from None
    except YAMLError as error:
        raise NotADocument(1, f"is no YAML: {str(error).splitlines()[0]}", "RMR0002") from None
    except (
        ValueError,
        OverflowError,
    ) as error:  # the scanner's own conversions: huge numbers in escapes and directives
        raise NotADocument(1, f"is no YAML: {str(error).splitlines()[0]}", "RMR0002") from None


def at(root: Node, path: tuple[str | int, ...]) -> int:
    """The line of a field, or of the nearest thing around it that is there."""
    line, node = root.line, root
    for part in path:
        if isinstance(node, Mapping) and part in node.items:
            line, node = node.lines[str(part)], node.items[str(part)]
        elif isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            line = node.line
        else:
            break
    return line


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been read."""

    line: int
    anchor: str | None
    is_mapping: bool
    size: int = 1
    depth: int = 1
    sequence: list[Node] = field(default_factory=list)
    items: dict[str, Node] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    merged: list[Mapping] = field(default_factory=list)
    key: Scalar | None = None

    def add(self, node: Node) -> None:
        self.size += node.size
        self.depth = max(self.depth, node.depth + 1)
        if not self.is_mapping:
            self.sequence.append(node)
        elif self.key is None:
            self.key = self._key(node)
        else:
            key, self.key = self.key, None
            if key.text == _MERGE and key.is_plain:
                self._merge(node)
            else:
                self.items[key.text] = replace(node, line=key.line)

    def _key(self, node: Node) -> Scalar:
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            shown = quoted(node.text) if isinstance(node, Scalar) else "a mapping or a list"
            raise NotADocument(node.line, f"{shown} is the name of a field; write the name as a text", "RMR0002")
        if node.text in self.lines:
            text = f"{quoted(node.text)} stands here and in line {self.lines[node.text]}; keep one"
            raise NotADocument(node.line, text, "RMR0004")
        self.lines[node.text] = node.line
        return node

    def _merge(self, node: Node) -> None:
        for source in node.items if isinstance(node, Sequence) else (node,):
            if not isinstance(source, Mapping):
                raise NotADocument(node.line, f"{_MERGE} takes a mapping, or a list of mappings", "RMR0002")
            self.merged.append(source)

    def close(self) -> Node:
        if not self.is_mapping:
            return Sequence(self.line, tuple(self.sequence), self.size, self.depth)
        if self.merged:
            self.lines.pop(_MERGE)
        for source in self.merged:
            for key, node in source.items.items():
                if key not in self.items:
                    self.items[key], self.lines[key] = node, source.lines[key]
        return Mapping(self.line, self.items, self.lines, self.size, self.depth)


class _Builder:
    """One document at a time, from events."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}

    def take(self, event: Any) -> None:
        if isinstance(event, DocumentStartEvent):
            self.root = None
            self._anchors.clear()
        elif isinstance(event, SequenceStartEvent | MappingStartEvent):
            _refuse_tag(event)
            if len(self._open) >= MAX_DEPTH:
                _too_much(_line(event))
            self._open.append(_Open(_line(event), event.anchor, isinstance(event, MappingStartEvent)))
        elif isinstance(event, SequenceEndEvent | MappingEndEvent):
            closed = self._open.pop()
            self._place(closed.close(), closed.anchor)
        elif isinstance(event, ScalarEvent):
            self._place(_scalar(event), event.anchor)
        elif isinstance(event, AliasEvent):
            self._place(self._named(event), None)

    def _named(self, event: Any) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            is_inside = any(item.anchor == event.anchor for item in self._open)
            text = f"*{event.anchor} {'stands inside of itself' if is_inside else 'names nothing that stands above'}"
            raise NotADocument(_line(event), f"is no YAML: {text}", "RMR0002")
        return node

    def _place(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        around = self._open[-1]
        around.add(node)
        if around.size > MAX_VALUES or around.depth + len(self._open) - 1 > MAX_DEPTH:
            _too_much(around.line)


def _too_much(line: int) -> None:
    text = f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH} levels; write less"
    raise NotADocument(line, text, "RMR0001")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _refuse_tag(event: Any) -> None:
    tag = str(event.ctag) if event.ctag is not None else "!"
    if tag not in ("!", "None"):
        raise NotADocument(_line(event), f"tag {tag} is not known here; leave it out", "RMR0002")


def _scalar(event: Any) -> Scalar:
    text = str(event.value)
    is_text = event.style in ("'", '"', "|", ">")
    if event.ctag is not None and str(event.ctag) == _TEXT_TAG:
        is_text = True
    else:
        _refuse_tag(event)
    try:
        # JSON escapes what is beyond 16 bits as a pair of surrogates: each pair is one character.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise NotADocument(
            _line(event), "holds half of a surrogate pair; write the whole character", "RMR0002"
        ) from None
    return Scalar(_line(event), text, text if is_text else _resolved(text), is_plain=not is_text)


def _resolved(text: str) -> str | int | float | bool | None:
    """What a plain scalar stands for."""
    if text in _NULL:
        return None
    if text in _WORDS:
        return _WORDS[text]
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
