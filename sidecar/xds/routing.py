"""What Envoy's routes do beside naming a cluster: change headers, rewrite, redirect, answer. See `sidecar.proxy.edit`."""

import re
from dataclasses import replace
from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2

from sidecar.proxy.config import (
    DirectResponse,
    HeaderChange,
    HeaderChanges,
    MirrorPolicy,
    OnExisting,
    Redirect,
    Rewrite,
    RouteMatch,
    ValuePart,
)
from sidecar.xds.matching import header_match, query_match
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import fraction, regex, rewriting

_Option: Final = base_pb2.HeaderValueOption
_ON_EXISTING: Final = {
    _Option.APPEND_IF_EXISTS_OR_ADD: OnExisting.APPEND,
    _Option.ADD_IF_ABSENT: OnExisting.KEEP,
    _Option.OVERWRITE_IF_EXISTS_OR_ADD: OnExisting.OVERWRITE,
    _Option.OVERWRITE_IF_EXISTS: OnExisting.OVERWRITE_ONLY,
}
_REDIRECT_CODES: Final = {
    route_components_pb2.RedirectAction.MOVED_PERMANENTLY: 301,
    route_components_pb2.RedirectAction.FOUND: 302,
    route_components_pb2.RedirectAction.SEE_OTHER: 303,
    route_components_pb2.RedirectAction.TEMPORARY_REDIRECT: 307,
    route_components_pb2.RedirectAction.PERMANENT_REDIRECT: 308,
}
_COMMAND: Final = re.compile(r"%%|%REQ\((:?[^?():%]+)(?:\?(:?[^():%]+))?\)(?::([0-9]+))?%|%")
MAX_BODY: Final = 4096
"""Bytes of a direct response (Envoy: max_direct_response_body_size_bytes)."""


def header_changes(message: Any, kind: str, path: str) -> HeaderChanges:
    """`KIND_headers_to_add` and `KIND_headers_to_remove` of a route, a virtual host or a table."""
    added = getattr(message, f"{kind}_headers_to_add")
    removed = getattr(message, f"{kind}_headers_to_remove")
    add = tuple(
        _header_change(item, kind, f"{path}.{kind}_headers_to_add[{number}]") for number, item in enumerate(added)
    )
    for name in removed:
        _refuse_fixed(name, f"{path}.{kind}_headers_to_remove")
    return HeaderChanges(add, tuple(name.lower().encode() for name in removed))


def _refuse_fixed(name: str, path: str) -> None:
    if name.startswith(":") or name.lower() == "host":
        raise ConfigError(path, f'"{name}" cannot be changed here; see host_rewrite_literal, prefix_rewrite (RMR0146)')


def _header_change(message: Any, kind: str, path: str) -> HeaderChange:
    _refuse_fixed(message.header.key, f"{path}.header.key")
    action = message.append_action
    if message.HasField("append"):
        action = _Option.APPEND_IF_EXISTS_OR_ADD if message.append.value else _Option.OVERWRITE_IF_EXISTS_OR_ADD
    return HeaderChange(
        message.header.key.lower().encode(),
        _value(message.header.value, kind, f"{path}.header.value"),
        _ON_EXISTING[action],
        message.keep_empty_value,
    )


def _value(text: str, kind: str, path: str) -> tuple[ValuePart, ...]:
    """A value with Envoy's command operators; `%%` is a percent sign, `%REQ(NAME?OTHERWISE):LONGEST%` a header of the request."""
    parts: list[ValuePart] = []
    at = 0
    for found in _COMMAND.finditer(text):
        if found.start() > at:
            parts.append(ValuePart(text[at : found.start()].encode()))
        at = found.end()
        if found.group() == "%%":
            parts.append(ValuePart(b"%"))
        elif found.group(1) is None or kind != "request":
            raise ConfigError(path, f'"{text}": only %REQ(…)%, in requests, and %% are supported (RMR0146)')
        else:
            other = (found.group(2) or "").lower().encode()
            parts.append(ValuePart(b"", found.group(1).lower().encode(), other, int(found.group(3) or 0)))
    if at < len(text):
        parts.append(ValuePart(text[at:].encode()))
    return tuple(parts)


def rewrite(action: Any, path: str) -> Rewrite | None:
    """The rewrites of a route.v3.RouteAction."""
    pattern = substitution = host_pattern = host_substitution = None
    if action.prefix_rewrite and action.HasField("regex_rewrite"):
        raise ConfigError(f"{path}.prefix_rewrite", "goes not with regex_rewrite (RMR0146)")
    if action.HasField("regex_rewrite"):
        pattern, substitution = rewriting(action.regex_rewrite, f"{path}.regex_rewrite")
    host = action.WhichOneof("host_rewrite_specifier")
    if host == "host_rewrite_path_regex":
        host_pattern, host_substitution = rewriting(action.host_rewrite_path_regex, f"{path}.host_rewrite_path_regex")
    if not action.prefix_rewrite and pattern is None and host is None:
        return None
    return Rewrite(
        prefix=action.prefix_rewrite.encode() or None,
        pattern=pattern,
        substitution=substitution or "",
        host=action.host_rewrite_literal.encode() if host == "host_rewrite_literal" else None,
        host_header=action.host_rewrite_header.lower().encode() if host == "host_rewrite_header" else None,
        host_pattern=host_pattern,
        host_substitution=host_substitution or "",
    )


def redirect(message: Any, path: str) -> Redirect:
    """route.v3.RedirectAction."""
    form = message.WhichOneof("path_rewrite_specifier")
    change: Rewrite | None = None
    if form == "prefix_rewrite":
        change = Rewrite(prefix=message.prefix_rewrite.encode())
    elif form == "regex_rewrite":
        pattern, substitution = rewriting(message.regex_rewrite, f"{path}.regex_rewrite")
        change = Rewrite(pattern=pattern, substitution=substitution)
    return Redirect(
        status=_REDIRECT_CODES[message.response_code],
        scheme=b"https" if message.https_redirect else message.scheme_redirect.encode(),
        host=message.host_redirect.encode(),
        port=message.port_redirect,
        path=message.path_redirect.encode(),
        rewrite=change,
        strips_query=message.strip_query,
    )


def direct_response(message: Any, path: str) -> DirectResponse:
    """route.v3.DirectResponseAction."""
    if not 200 <= message.status < 600:
        raise ConfigError(f"{path}.status", f"{message.status}: 200 to 599 are possible (RMR0146)")
    source = message.body
    if source.WhichOneof("specifier") == "filename":
        raise ConfigError(f"{path}.body.filename", "inline_string and inline_bytes are supported (RMR0146)")
    body = source.inline_bytes or source.inline_string.encode()
    if len(body) > MAX_BODY:
        raise ConfigError(f"{path}.body", f"{len(body)} bytes; at most {MAX_BODY} are possible (RMR0146)")
    return DirectResponse(message.status, body)


def mirrors(action: Any, path: str) -> tuple[MirrorPolicy, ...]:
    """`request_mirror_policies` of a route.v3.RouteAction."""
    found = []
    for number, item in enumerate(action.request_mirror_policies):
        if not item.cluster:
            raise ConfigError(f"{path}.request_mirror_policies[{number}].cluster", "is needed (RMR0112)")
        share = fraction(item.runtime_fraction) if item.HasField("runtime_fraction") else 1.0
        found.append(MirrorPolicy(item.cluster, share, item.disable_shadow_host_suffix_append))
    return tuple(found)


def route_match(message: Any, path: str) -> RouteMatch:
    """route.v3.RouteMatch."""
    headers = tuple(header_match(header, f"{path}.headers[{n}]") for n, header in enumerate(message.headers))
    ignores_case = message.HasField("case_sensitive") and not message.case_sensitive.value
    form = message.WhichOneof("path_specifier")
    text = getattr(message, form) if form in ("prefix", "path", "path_separated_prefix") else ""
    if ignores_case:
        text = text.lower()
    common = RouteMatch(
        headers=headers,
        ignore_case=ignores_case and bool(text),
        query=tuple(
            query_match(item, f"{path}.query_parameters[{n}]") for n, item in enumerate(message.query_parameters)
        ),
        is_grpc=message.HasField("grpc"),
    )
    match form:
        case "prefix":
            return replace(common, prefix=text.encode())
        case "path":
            return replace(common, path=text.encode())
        case "path_separated_prefix":
            if not text.startswith("/") or text.endswith("/") or "?" in text or "#" in text:
                raise ConfigError(
                    f"{path}.path_separated_prefix", f'"{text}" is no path without / at its end (RMR0114)'
                )
            return replace(common, folder=text.encode())
        case "safe_regex":
            return replace(common, regex=regex(message.safe_regex, f"{path}.safe_regex"))
        case "connect_matcher":
            return replace(common, connect=True)
    raise ConfigError(path, "prefix, path, path_separated_prefix, safe_regex or connect_matcher is needed (RMR0114)")
