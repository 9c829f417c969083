"""What routes change in requests and responses: headers, path, host (Envoy: route.v3).

A request is edited once per distinct header block, when its plan is made; a response's block is edited once and remembered. So a
call whose blocks were seen before pays one look-up for it.
"""

from collections.abc import Sequence
from typing import Final

from sidecar.http2 import headers
from sidecar.policy import pattern
from sidecar.proxy.config import (
    HeaderChanges,
    OnExisting,
    Rewrite,
    Route,
    RouteTable,
    ValuePart,
    VirtualHost,
)

MAX_MEMO: Final = 256
"""Response blocks that are remembered."""

_Field = tuple[bytes, bytes]
"""Name, and the encoded field."""


def _fields(block: bytes) -> list[_Field]:
    return [(headers.name_of(field), field[1]) for field in headers.split(block)]


def _value(fields: Sequence[_Field], name: bytes) -> bytes | None:
    """The first value of a header."""
    for own, whole in fields:
        if own == name:
            [field] = headers.split(whole)
            return headers.value_of(field)
    return None


def _written(parts: tuple[ValuePart, ...], fields: Sequence[_Field]) -> bytes:
    """A value made of texts and other headers; a header that is not there is empty (as in Envoy)."""
    made: list[bytes] = []
    for part in parts:
        if part.header:
            value = _value(fields, part.header)
            if value is None and part.otherwise:
                value = _value(fields, part.otherwise)
            made.append((value or b"")[: part.longest or None])
        else:
            made.append(part.text)
    return b"".join(made)


def change(fields: list[_Field], changes: HeaderChanges) -> list[_Field]:
    """Fields after some changes, in Envoy's order: what goes, what is set anew, what is added; values and conditions are of the time before."""
    if changes.remove:
        fields = [field for field in fields if field[0] not in changes.remove]
    there = {name for name, _ in fields}
    anew: list[_Field] = []
    added: list[_Field] = []
    for item in changes.add:
        value = _written(item.value, fields)
        if not value and not item.keeps_empty:
            continue
        fresh = (item.name, headers.encode_field(item.name, value))
        if item.on_existing is OnExisting.APPEND or (item.on_existing is OnExisting.KEEP and item.name not in there):
            added.append(fresh)
        elif item.on_existing is OnExisting.OVERWRITE or (
            item.on_existing is OnExisting.OVERWRITE_ONLY and item.name in there
        ):
            anew = [field for field in anew if field[0] != item.name]
            anew.append(fresh)
    if anew:
        set_anew = {name for name, _ in anew}
        fields = [field for field in fields if field[0] not in set_anew]
    return fields + anew + added


class RequestEdit:
    """All that is changed in the requests of a route."""

    def __init__(self, levels: Sequence[HeaderChanges], rewrite: Rewrite | None, matched: bytes | None) -> None:
        self._levels = [level for level in levels if level.add or level.remove]
        self._rewrite = rewrite
        self._matched = matched
        """The prefix that the route matched; None if it matched the whole path."""

    @property
    def is_empty(self) -> bool:
        return not self._levels and self._rewrite is None

    def apply(self, block: bytes) -> bytes:
        """The block as it goes upstream."""
        fields = _fields(block)
        for level in self._levels:
            fields = change(fields, level)
        if self._rewrite is not None:
            fields = self._rewritten(fields, self._rewrite)
        return b"".join(whole for _, whole in fields)

    def _rewritten(self, fields: list[_Field], rewrite: Rewrite) -> list[_Field]:
        path = _value(fields, b":path") or b""
        host = _host(fields, rewrite, path)
        rewrites_path = rewrite.prefix is not None or rewrite.pattern is not None
        made: list[_Field] = []
        for name, whole in fields:
            if name == b":authority" and host is not None:
                whole = headers.encode_field(name, host)
            elif name == b":path" and rewrites_path:
                whole = headers.encode_field(name, rewritten_path(path, rewrite, self._matched))
            made.append((name, whole))
        # Whoever comes behind us may want to know what was asked for (as Envoy).
        if host is not None:
            made = _noted(made, b"x-envoy-original-host", _value(fields, b":authority") or b"")
        return _noted(made, b"x-envoy-original-path", path) if rewrites_path else made


def _noted(fields: list[_Field], name: bytes, value: bytes) -> list[_Field]:
    return [*(field for field in fields if field[0] != name), (name, headers.encode_field(name, value))]


def rewritten_path(path: bytes, rewrite: Rewrite, matched: bytes | None) -> bytes:
    """A path, with its query, after a rewrite; `matched` is the prefix that the route matched, None for the whole path."""
    bare, mark, query = path.partition(b"?")
    if rewrite.prefix is not None:
        rest = bare[len(matched) :] if matched is not None else b""
        return rewrite.prefix + rest + mark + query
    if rewrite.pattern is not None:
        return pattern.replace(rewrite.pattern, rewrite.substitution, bare) + mark + query
    return path


def _host(fields: Sequence[_Field], rewrite: Rewrite, path: bytes) -> bytes | None:
    """The authority that goes on; None leaves it."""
    if rewrite.host is not None:
        return rewrite.host
    if rewrite.host_header is not None:
        return _value(fields, rewrite.host_header) or None
    if rewrite.host_pattern is not None:
        return pattern.replace(rewrite.host_pattern, rewrite.host_substitution, path.partition(b"?")[0])
    return None


class ResponseEdit:
    """All that is changed in the headers of responses of a route."""

    def __init__(self, levels: Sequence[HeaderChanges]) -> None:
        self._levels = [level for level in levels if level.add or level.remove]
        self._memo: dict[bytes, bytes] = {}

    @property
    def is_empty(self) -> bool:
        return not self._levels

    def apply(self, block: bytes) -> bytes:
        """The block as it goes to the client."""
        known = self._memo.get(block)
        if known is not None:
            return known
        fields = _fields(block)
        for level in self._levels:
            fields = change(fields, level)
        made = b"".join(whole for _, whole in fields)
        if len(self._memo) >= MAX_MEMO:
            self._memo.clear()
        self._memo[block] = made
        return made


def edits(table: RouteTable, host: VirtualHost, route: Route) -> tuple[RequestEdit | None, ResponseEdit | None]:
    """What a route changes in requests and responses, with what virtual host and table change."""
    requests = [route.request_changes, host.request_changes, table.request_changes]
    responses = [route.response_changes, host.response_changes, table.response_changes]
    if table.has_specific_last:
        requests.reverse()
        responses.reverse()
    match = route.match
    request = RequestEdit(requests, route.rewrite, match.prefix if match.prefix is not None else match.folder)
    response = ResponseEdit(responses)
    return None if request.is_empty else request, None if response.is_empty else response
