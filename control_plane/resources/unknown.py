"""Fields that the schema does not know: refused by number, never ignored."""

from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from control_plane.resources.errors import Fault


def faults(message: Message, path: str = "") -> Iterator[Fault]:
    """One fault for each unknown field of a message and of what it contains."""
    extra: Any = UnknownFieldSet(message)
    for number in sorted({field.field_number for field in extra}):
        text = f"field {number} of {message.DESCRIPTOR.name} is not known to this release; leave it out"
        yield Fault(path, text, "RMR0016")
    for field, value in message.ListFields():
        place = f"{path}.{field.json_name}" if path else field.json_name
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            for key, item in sorted(value.items(), key=itemgetter(0)):
                if isinstance(item, Message):
                    yield from faults(item, f"{place}[{key}]")
        elif field.is_repeated:
            for number, item in enumerate(value):
                yield from faults(item, f"{place}[{number}]")
        else:
            yield from faults(value, place)
