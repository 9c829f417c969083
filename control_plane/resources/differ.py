"""What differs between two resources, field by field. Pure."""

import json
from collections.abc import Iterator
from typing import Any, Final

from control_plane.resources.dump import to_dict
from proto.mesh.v1 import api_pb2

MAX_CHANGES: Final = 200
"""Fields of one resource that are named; what is beyond them is not."""
MAX_SHOWN: Final = 1000
"""Characters of one value."""
_COUNTED: Final = ("generation", "resourceVersion", "creationTimestamp", "lastChange")
"""What the control plane sets in the metadata."""


def written(resource: api_pb2.Resource) -> dict[str, Any]:
    """What a user wrote of a resource: no status, nothing that the control plane sets."""
    shown = to_dict(resource)
    shown.pop("status", None)
    for name in _COUNTED:
        shown["metadata"].pop(name, None)
    return shown


def changes(before: api_pb2.Resource | None, after: api_pb2.Resource | None) -> list[api_pb2.FieldChange]:
    """From one to the other, in the order of the fields; of what was not there or is gone, each part of the spec."""
    one = written(before) if before is not None else {}
    other = written(after) if after is not None else {}
    if not one or not other:  # that kind and name come and go with it need not be said
        one, other = ({"spec": each["spec"]} if each else {"spec": {}} for each in (one, other))
    found: list[api_pb2.FieldChange] = []
    for change in _walk("", one, other):
        if len(found) >= MAX_CHANGES:
            break
        found.append(change)
    return found


def _walk(path: str, before: Any, after: Any) -> Iterator[api_pb2.FieldChange]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            place = f"{path}.{name}" if path else name
            yield from _walk(place, before.get(name), after.get(name))
    elif isinstance(before, list) and isinstance(after, list):
        for number in range(max(len(before), len(after))):
            one, other = ((each[number] if number < len(each) else None) for each in (before, after))
            yield from _walk(f"{path}[{number}]", one, other)
    else:
        yield api_pb2.FieldChange(path=path, before=_shown(before), after=_shown(after))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
