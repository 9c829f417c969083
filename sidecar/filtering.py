"""What a filter in plain Python is written against: docs/filters.md. Knows nothing of the sidecar, so a filter is tested by itself.

A package offers a filter by an entry point in the group `remora.filters`; the sidecar makes one object of it for each place in its
configuration that names it, and calls it on its event loop, one call at a time: do not block, and keep no thread.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

GROUP: Final = "remora.filters"
"""Of entry points."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_BAD_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")
_FIXED: Final = frozenset(
    (
        "connection",
        "content-length",
        "grpc-timeout",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    )
)
"""Headers that belong to the transport: filters read them, and leave them alone."""
_FREE: Final = ("grpc-tags-bin", "grpc-trace-bin")
_MAX_STATUS: Final = 16


class FilterError(Exception):
    """There is no such filter, or it does not take its configuration; the text says why."""


class Headers:
    """The headers of a request or a response: names in any case, in order, a name may stand more than once.

    Changing what belongs to the transport (names that begin with `:`, `host`, `te`, `grpc-timeout`, `content-length` …) raises ValueError.
    """

    def __init__(self, fields: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        pairs = fields.items() if isinstance(fields, Mapping) else fields
        self._fields = [(name.lower(), value) for name, value in pairs]
        self.is_changed = False
        """True once anything was set, added or removed."""

    def get(self, name: str, default: str = "") -> str:
        """The first value."""
        return next((value for key, value in self._fields if key == name.lower()), default)

    def all(self, name: str) -> list[str]:
        """Every value, in order."""
        return [value for key, value in self._fields if key == name.lower()]

    def set(self, name: str, value: str) -> None:
        """Instead of all that is there."""
        _check(name, value)
        self._fields = [pair for pair in self._fields if pair[0] != name.lower()]
        self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """Beside what is there."""
        _check(name, value)
        self._fields.append((name.lower(), value))
        self.is_changed = True

    def remove(self, name: str) -> None:
        """Take out every value; nothing happens if there is none."""
        _check(name, "")
        if name in self:
            self._fields = [pair for pair in self._fields if pair[0] != name.lower()]
            self.is_changed = True

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(key == name.lower() for key, _ in self._fields)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(tuple(self._fields))

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Headers({self._fields!r})"


def _check(name: str, value: str) -> None:
    """Raises ValueError for what is no header, or none that a filter may change."""
    key = name.lower()
    if not _NAME.fullmatch(key) or _BAD_VALUE.search(value) or value != value.strip():
        raise ValueError(f"{name!r}: {value!r} is no header")
    if key in _FIXED or (key.startswith("grpc-") and key not in _FREE):
        raise ValueError(f"{name} belongs to the transport: a filter may not change it")


@dataclass(slots=True)
class Request:
    """A call on its way: what a filter reads of it. Only `headers` may be changed."""

    path: str = "/"
    """`/PACKAGE.SERVICE/METHOD`."""
    headers: Headers = field(default_factory=Headers)
    """Without pseudo-headers."""
    authority: str = ""
    """Who is called, as the caller named it."""
    caller: tuple[str, ...] = ()
    """URIs in the caller's certificate (`spiffe://…`); empty if it showed none."""
    caller_host: str = ""
    """The IP address at the other end of the connection; empty for the program beside the sidecar."""
    notes: dict[str, Any] = field(default_factory=dict)
    """For the filter: what it wants to find again in `on_response` and `on_end`."""


@dataclass(slots=True)
class Response:
    """The head of an answer. Only `headers` may be changed."""

    headers: Headers = field(default_factory=Headers)
    http_status: int = 200
    status: int | None = None
    """The gRPC status, if the answer is that alone; None if messages follow, and the status after them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The filter answers the call itself; it goes no further."""

    status: int
    """A gRPC status, 0 to 16."""
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    http_status: int = 0
    """For callers that do not speak gRPC; 0 is what fits `status` best."""

    def __post_init__(self) -> None:
        if not 0 <= self.status <= _MAX_STATUS:
            raise ValueError(f"{self.status} is no gRPC status")
        for name, value in self.headers:
            _check(name, value)


class Filter:
    """A filter. Make a class of your own of it; override what you need, what is not overridden costs calls nothing."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is what stands in the configuration, as JSON's types. Raise ValueError for what cannot be: it is refused as a whole.

        Made at each new configuration, also only to see whether it can be: begin nothing here.
        """

    def on_request(self, request: Request) -> Answer | None:
        """A call has come: change its headers, answer it, or do nothing."""
        return None

    def on_response(self, request: Request, response: Response) -> None:
        """The head of an answer has come from upstream; not for answers that the mesh gives itself."""

    def on_end(self, request: Request, status: int) -> None:
        """The call is over with this gRPC status, whoever gave it; 17 if it was no gRPC."""


@cache
def offered(name: str) -> type[Filter]:
    """The class that an installed package offers under a name; looked for once, if it is there. Raises FilterError."""
    known = entry_points(group=GROUP)
    found = [each for each in known if each.name == name]
    if not found:
        names = ", ".join(sorted({each.name for each in known})) or "none"
        raise FilterError(f'no installed package offers a filter "{name}" (entry points {GROUP}: {names})')
    try:
        kind = found[0].load()
    except Exception as error:
        raise FilterError(f'filter "{name}" cannot be imported: {type(error).__name__}: {error}') from error
    if not (isinstance(kind, type) and issubclass(kind, Filter)):
        raise FilterError(f'filter "{name}" ({found[0].value}) is no subclass of sidecar.filtering.Filter')
    return kind


def load(name: str, config: Mapping[str, Any]) -> Filter:
    """A filter of an installed package. Raises FilterError."""
    try:
        return offered(name)(config)
    except FilterError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise FilterError(f'filter "{name}" does not take its configuration: {text}') from error
