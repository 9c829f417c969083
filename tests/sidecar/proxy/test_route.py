"""The router against a slow model: every route of a host is asked in order, every domain is looked at."""

import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.proxy.config import HeaderMatch, Route, RouteMatch, RouteTable, VirtualHost
from sidecar.proxy.route import Request, Router

paths = st.sampled_from([b"/", b"/a", b"/a/b", b"/a/bc", b"/b", b"/b/c", b""])
values = st.sampled_from([b"", b"ann", b"anna", b"bob", b"banna"])
names = st.sampled_from([b"x-user", b"x-team"])
REGEXES: Final = ("/a.*", "/[ab]", "/b/c", "an+a?", "b.*")


@st.composite
def header_matches(draw: st.DrawFn) -> HeaderMatch:
    kind = draw(st.sampled_from(["exact", "prefix", "suffix", "regex", "present"]))
    value: object = draw(values)
    if kind == "regex":
        value = draw(st.sampled_from(REGEXES))
    elif kind == "present":
        value = draw(st.booleans())
    return HeaderMatch(draw(names), invert=draw(st.booleans()), **{kind: value})  # type: ignore[arg-type]


@st.composite
def routes(draw: st.DrawFn) -> Route:
    headers = tuple(draw(st.lists(header_matches(), max_size=2)))
    match draw(st.sampled_from(["path", "prefix", "regex", "connect"])):
        case "path":
            match = RouteMatch(path=draw(paths), headers=headers)
        case "prefix":
            match = RouteMatch(prefix=draw(paths), headers=headers)
        case "regex":
            match = RouteMatch(regex=draw(st.sampled_from(REGEXES)), headers=headers)
        case _:
            match = RouteMatch(connect=True, headers=headers)
    return Route(match, (("a", 1),), name=str(draw(st.integers())))


@st.composite
def requests(draw: st.DrawFn) -> Request:
    headers = draw(st.dictionaries(names, st.lists(values, min_size=1, max_size=2), max_size=2))
    return Request(draw(st.sampled_from([b"POST", b"CONNECT"])), draw(paths), b"shop", headers)


def _header_holds_by_definition(match: HeaderMatch, headers: dict[bytes, list[bytes]]) -> bool:
    given = headers.get(match.name)
    if match.present is not None:
        holds = match.present == (given is not None)
        return not holds if match.invert else holds
    if given is None:
        return False
    one_holds = False
    for value in given:
        text = value.decode()
        one_holds |= match.exact is not None and value == match.exact
        one_holds |= match.prefix is not None and value[: len(match.prefix)] == match.prefix
        one_holds |= match.suffix is not None and value[len(value) - len(match.suffix) :] == match.suffix
        one_holds |= match.regex is not None and re.match(f"(?:{match.regex})\\Z", text) is not None
    return not one_holds if match.invert else one_holds


def _first_by_definition(candidates: list[Route], request: Request) -> Route | None:
    for route in candidates:
        match = route.match
        if match.connect or request.method == b"CONNECT":
            holds = match.connect and request.method == b"CONNECT"
        elif match.path is not None:
            holds = request.path == match.path
        elif match.prefix is not None:
            holds = request.path[: len(match.prefix)] == match.prefix
        else:
            holds = re.match(f"(?:{match.regex})\\Z", request.path.decode()) is not None
        if holds and all(_header_holds_by_definition(each, request.headers) for each in match.headers):
            return route
    return None


@given(st.lists(routes(), max_size=12), requests())
def test_the_first_route_in_order_that_holds_is_taken(candidates: list[Route], request: Request) -> None:
    router = Router(RouteTable("t", (VirtualHost("shop", ("shop",), tuple(candidates)),)))
    found = router.find(request)
    expected = _first_by_definition(candidates, request)
    assert (found[1] if found else None) is expected


labels = st.lists(st.sampled_from(["a", "b", "eu", "shop"]), min_size=1, max_size=4).map(".".join)
domains = labels | labels.map(lambda name: f"*.{name}") | labels.map(lambda name: f"{name}.*") | st.just("*")


def _host_by_definition(tables: dict[str, str], authority: str) -> str | None:
    """Exact, then the longest suffix, then the longest prefix, then anything (Envoy: route.v3.VirtualHost.domains)."""
    if authority in tables:
        return tables[authority]
    suffixes = [domain for domain in tables if domain[0] == "*" and len(domain) > 1]
    prefixes = [domain for domain in tables if domain[-1] == "*" and len(domain) > 1]
    fits = [domain for domain in suffixes if authority.endswith(domain[1:]) and len(authority) >= len(domain)] or [
        domain for domain in prefixes if authority.startswith(domain[:-1]) and len(authority) >= len(domain)
    ]
    if fits:
        return tables[max(fits, key=len)]
    return tables.get("*")


@given(st.lists(domains, unique=True, max_size=10), labels)
def test_the_most_specific_domain_is_taken(names: list[str], authority: str) -> None:
    anything = (Route(RouteMatch(prefix=b""), (("a", 1),)),)
    hosts = tuple(VirtualHost(f"host of {name}", (name,), anything) for name in names)
    found = Router(RouteTable("t", hosts)).find(Request(b"POST", b"/", authority.encode(), {}))
    assert (found[0].name if found else None) == _host_by_definition(
        {name: f"host of {name}" for name in names}, authority
    )


@pytest.mark.parametrize("authority", [b"Shop.EU", b"shop.eu", b"SHOP.eu"])
def test_domains_are_not_case_sensitive(authority: bytes) -> None:
    anything = (Route(RouteMatch(prefix=b""), (("a", 1),)),)
    router = Router(RouteTable("t", (VirtualHost("h", ("sHop.eu",), anything),)))
    assert router.find(Request(b"POST", b"/", authority, {})) is not None


def test_the_names_of_all_headers_that_decide_are_known() -> None:
    match = RouteMatch(prefix=b"", headers=(HeaderMatch(b"x-a", exact=b"1"), HeaderMatch(b"x-b", present=True)))
    router = Router(RouteTable("t", (VirtualHost("h", ("*",), (Route(match, (("a", 1),)),)),)))
    assert router.header_names == {b"x-a", b"x-b"}
