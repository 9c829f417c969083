"""Answers that a route gives itself: a text, or another place to go (Envoy: route.v3.DirectResponseAction, RedirectAction)."""

from dataclasses import dataclass
from typing import Final

from sidecar.http2 import headers
from sidecar.proxy.config import Redirect, RouteMatch
from sidecar.proxy.edit import rewritten_path
from sidecar.proxy.route import Request

_PORTS: Final = {b"http": b"80", b"https": b"443"}


@dataclass(frozen=True, slots=True)
class DirectAnswer:
    """An answer that is the same for every call of a decision."""

    http_status: int
    body: bytes = b""
    fields: bytes = b""
    """Headers beside those that every answer has, encoded."""


def redirected(redirect: Redirect, match: RouteMatch, request: Request) -> DirectAnswer:
    """The answer that sends a request elsewhere."""
    location = _location(redirect, match, request)
    return DirectAnswer(redirect.status, fields=headers.encode_field(b"location", location))


def _location(redirect: Redirect, match: RouteMatch, request: Request) -> bytes:
    own = request.headers.get(b":scheme", [b"http"])[0]
    scheme = redirect.scheme or own
    host = redirect.host or _host(request.authority, own, scheme, redirect.port)
    port = b":%d" % redirect.port if redirect.port else b""
    return scheme + b"://" + host + port + _path(redirect, match, request)


def _host(authority: bytes, own: bytes, scheme: bytes, port: int) -> bytes:
    """The host as it was asked for, but for a port that no longer fits."""
    bare, mark, given = authority.rpartition(b":")
    if not mark or not given.isdigit():
        return authority
    is_default_of_old = scheme != own and given == _PORTS.get(own)
    return bare if port or is_default_of_old else authority


def _path(redirect: Redirect, match: RouteMatch, request: Request) -> bytes:
    path = request.headers.get(b":path", [b"/"])[0]
    query = path[len(request.path) :]
    if redirect.path:
        keeps_query = b"?" not in redirect.path and not redirect.strips_query
        return redirect.path + (query if keeps_query else b"")
    if redirect.rewrite is not None:
        path = rewritten_path(path, redirect.rewrite, match.prefix if match.prefix is not None else match.folder)
    return path.partition(b"?")[0] if redirect.strips_query else path
