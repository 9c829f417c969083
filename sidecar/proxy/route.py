"""From a request's headers to a route: authority to virtual host, path and headers to route (Envoy: route.v3).

Runs once per distinct header block (see `decision`); clarity before speed, but exact domains and exact paths are looked
up, not searched, so that the number of routes costs little on a miss too.
"""

import re
from dataclasses import dataclass
from typing import Final

from sidecar.policy import pattern
from sidecar.proxy.config import HeaderMatch, RetryPolicy, Route, RouteMatch, RouteTable, VirtualHost

_WHOLE_NUMBER: Final = re.compile(rb"\s*[+-]?[0-9]{1,18}\s*")


@dataclass(frozen=True, slots=True)
class Request:
    """What routing reads of a request."""

    method: bytes
    path: bytes
    """Without the query."""
    authority: bytes
    headers: dict[bytes, list[bytes]]
    """By lower-case name, pseudo-headers among them; `:path` with its query."""


def header_holds(match: HeaderMatch, headers: dict[bytes, list[bytes]]) -> bool:
    """True if the condition on a header is met."""
    values = headers.get(match.name)
    if values is None and match.missing_is_empty:
        values = [b""]
    if match.present is not None:
        return ((values is not None) == match.present) != match.invert
    if values is None:
        # Envoy: a missing header matches nothing, also when the match is inverted.
        return False
    # Envoy: one value of several is enough; inverted, none may hold.
    return any(value_holds(match, value) for value in values) != match.invert


def value_holds(match: HeaderMatch, value: bytes) -> bool:
    """True if a value is as the condition says; `invert` is left to the caller."""
    if match.ignore_case:
        value = value.lower()
    if match.exact is not None:
        return value == match.exact
    if match.prefix is not None:
        return value.startswith(match.prefix)
    if match.suffix is not None:
        return value.endswith(match.suffix)
    if match.contains is not None:
        return match.contains in value
    if match.between is not None:
        return _WHOLE_NUMBER.fullmatch(value) is not None and match.between[0] <= int(value) < match.between[1]
    assert match.regex is not None
    return pattern.matches(match.regex, value)


def _query(path: bytes) -> dict[bytes, list[bytes]]:
    """The parameters of a path's query, as they stand there."""
    found: dict[bytes, list[bytes]] = {}
    for part in path.partition(b"?")[2].split(b"&"):
        name, _, value = part.partition(b"=")
        found.setdefault(name, []).append(value)
    return found


def _path_holds(match: RouteMatch, path: bytes) -> bool:
    if match.ignore_case:
        path = path.lower()
    if match.path is not None:
        return path == match.path
    if match.prefix is not None:
        return path.startswith(match.prefix)
    if match.folder is not None:
        return path.startswith(match.folder) and path[len(match.folder) : len(match.folder) + 1] in (b"", b"/")
    assert match.regex is not None
    return pattern.matches(match.regex, path)


def match_holds(match: RouteMatch, request: Request) -> bool:
    """True if a request is as the conditions say."""
    if match.connect or request.method == b"CONNECT":
        path_holds = match.connect and request.method == b"CONNECT"
    else:
        path_holds = _path_holds(match, request.path)
    if not path_holds or not all(header_holds(header, request.headers) for header in match.headers):
        return False
    if match.is_grpc and not is_grpc(request.headers.get(b"content-type", [b""])[0]):
        return False
    if match.query:
        parameters = _query(request.headers.get(b":path", [b""])[0])
        return all(
            header_holds(item, {name: values[:1] for name, values in parameters.items()}) for item in match.query
        )
    return True


def is_grpc(content_type: bytes) -> bool:
    """True for the content type of a gRPC call."""
    return content_type == b"application/grpc" or content_type.startswith(b"application/grpc+")


def _conditions(route: Route) -> tuple[HeaderMatch, ...]:
    """All conditions on headers of requests that a route has."""
    return (*route.match.headers, *(route.retry.request_headers if route.retry is not None else ()))


def may_retry(policy: RetryPolicy, request: Request) -> bool:
    """True if requests like this one are tried again (Envoy: route.v3.RetryPolicy.retriable_request_headers)."""
    wanted = policy.request_headers
    return not wanted or any(header_holds(match, request.headers) for match in wanted)


class _Host:
    """A virtual host whose exact paths are indexed."""

    def __init__(self, host: VirtualHost) -> None:
        self.config = host
        self._by_path: dict[bytes, list[tuple[int, Route]]] = {}
        self._others: list[tuple[int, Route]] = []
        for order, route in enumerate(host.routes):
            if route.match.path is not None and not route.match.ignore_case:
                self._by_path.setdefault(route.match.path, []).append((order, route))
            else:
                self._others.append((order, route))

    def find(self, request: Request) -> Route | None:
        """The first route, in the order of the configuration, that takes the request."""
        best: tuple[int, Route] | None = None
        for order, route in self._by_path.get(request.path, ()):
            if match_holds(route.match, request):
                best = (order, route)
                break
        for order, route in self._others:
            if best is not None and order > best[0]:
                break
            if match_holds(route.match, request):
                best = (order, route)
                break
        return best[1] if best else None


class Router:
    """A route table made ready to be asked."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self._exact: dict[bytes, _Host] = {}
        self._suffixes: list[tuple[bytes, _Host]] = []
        self._prefixes: list[tuple[bytes, _Host]] = []
        self._default: _Host | None = None
        self.header_names: frozenset[bytes] = frozenset(
            header.name for host in table.virtual_hosts for route in host.routes for header in _conditions(route)
        )
        """Names of all headers that any route reads: two requests that agree in these and in path and authority go alike."""
        self.hash_names: frozenset[bytes] = frozenset().union(
            *(
                frozenset(policy.header for policy in route.hash_policies)
                for host in table.virtual_hosts
                for route in host.routes
            )
        )
        """Names of all headers of which any route makes a key for consistent hashing."""
        for config in table.virtual_hosts:
            host = _Host(config)
            for domain in config.domains:
                text = domain.lower().encode()
                if text == b"*":
                    self._default = host
                elif text.startswith(b"*"):
                    self._suffixes.append((text[1:], host))
                elif text.endswith(b"*"):
                    self._prefixes.append((text[:-1], host))
                else:
                    self._exact[text] = host
        # Envoy's order: exact, then the longest suffix wildcard, then the longest prefix wildcard, then "*".
        self._suffixes.sort(key=lambda item: -len(item[0]))
        self._prefixes.sort(key=lambda item: -len(item[0]))

    def host(self, authority: bytes) -> _Host | None:
        """The virtual host of an authority."""
        name = authority.lower()
        found = self._exact.get(name)
        if found is not None:
            return found
        for suffix, host in self._suffixes:
            if len(name) > len(suffix) and name.endswith(suffix):
                return host
        for prefix, host in self._prefixes:
            if len(name) > len(prefix) and name.startswith(prefix):
                return host
        return self._default

    def find(self, request: Request) -> tuple[VirtualHost, Route] | None:
        """Virtual host and route, or None: Envoy answers that with flag NR."""
        host = self.host(request.authority)
        route = host.find(request) if host is not None else None
        return (host.config, route) if host is not None and route is not None else None
