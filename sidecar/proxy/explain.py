"""What would become of a call, without it being made: the listener, route, filters, clusters and times, as the data path would decide now.

The data path's own objects are asked (`DecisionCache.foresee`, `Step.foresee`, the clusters); nothing is counted, no token is taken, no
dice are thrown. Runs on the event loop, when somebody asks.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from sidecar.http2 import headers
from sidecar.http2.fields import Malformed
from sidecar.policy.hosts import Health
from sidecar.policy.retry import most_retries
from sidecar.proxy.access import Caller
from sidecar.proxy.attempts import Retry
from sidecar.proxy.chain import Chain
from sidecar.proxy.cluster import Cluster, Endpoint
from sidecar.proxy.config import Budget, Direction, HeaderMatch, Route, RouteMatch, TlsCertificate, VirtualHost
from sidecar.proxy.decision import Decision, Plan
from sidecar.proxy.filters import FilterBook
from sidecar.proxy.listener import Listener
from sidecar.proxy.proxy import Proxy
from sidecar.proxy.route import Request
from sidecar.proxy.status import NAMES
from sidecar.proxy.step import Asked, Does
from sidecar.proxy.tls import TlsError, chosen, resolved, security

MAX_ENDPOINTS: Final = 1000
"""Of a cluster that are told of."""
_FIXED: Final = ((":method", "POST"), (":scheme", "http"), ("te", "trailers"), ("content-type", "application/grpc"))
"""What a gRPC client sends, unless the question says otherwise."""


class Unanswerable(Exception):
    """The question cannot be answered; the text says why."""


def answer(proxy: Proxy, question: bytes) -> tuple[int, Any]:
    """HTTP status and answer for a question as JSON.

    `authority`, `path`; `headers` as pairs; `direction`: `inbound` for calls that come, then `caller`: `uris`, `dns`, `subject`, `host`, `secure`.
    """
    try:
        asked = json.loads(question)
        if not isinstance(asked, dict):
            raise Unanswerable("the question is no object")
        authority, path = _text(asked, "authority"), _text(asked, "path")
        fields = [_pair(item) for item in asked.get("headers", ())]
        said = asked.get("caller", {})
        caller = Caller(
            is_secure=bool(said.get("secure", False)),
            uris=tuple(map(str, said.get("uris", ()))),
            dns=tuple(map(str, said.get("dns", ()))),
            subject=str(said.get("subject", "")),
            host=str(said.get("host", "")),
        )
        is_inbound = asked.get("direction") == "inbound"
        return 200, explain(proxy, authority, path, fields, is_inbound=is_inbound, caller=caller)
    except Unanswerable as error:
        return 422, {"error": str(error)}
    except (ValueError, TypeError, AttributeError) as error:
        return 400, {"error": f"no question: {error}"}


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value:
        raise Unanswerable(f"{name} is missing")
    return value


def _pair(item: Any) -> tuple[str, str]:
    name, value = item
    return str(name), str(value)


def explain(
    proxy: Proxy,
    authority: str,
    path: str,
    fields: Sequence[tuple[str, str]] = (),
    *,
    is_inbound: bool = False,
    caller: Caller | None = None,
) -> dict[str, Any]:
    """What would become of a call that the program beside us makes, or, inbound, of one that `caller` makes to it. Raises Unanswerable."""
    caller = caller or Caller()
    listener, chain = _chain(proxy, caller, is_inbound=is_inbound)
    proxy.worker.now = monotonic()
    request, plan = _read(chain, authority, path, fields)
    host = chain.router.host(request.authority) if chain.router is not None else None
    decision = plan.decision
    book = proxy.filters_of(listener.config.name, chain)
    told = _filters(
        book, host.config if host is not None and decision.route is not None else None, request, plan, caller
    )
    clusters = [_cluster(cluster, share, plan) for share, cluster in _shares(decision)]
    return {
        "listener": listener.config.name,
        "direction": "inbound" if is_inbound else "outbound",
        "method": request.path.decode("latin-1"),
        "authority": authority,
        "route": _route(host.config if host is not None else None, decision.route),
        "filters": told,
        "answer": _answer(decision),
        "clusters": clusters,
        "mirrors": [
            {"cluster": target.cluster.name, "share": target.share}
            for target in (decision.mirrors if decision.route else ())
        ],
        "timeouts": _timeouts(chain, plan),
        "retries": _retries(decision.retry),
        "identity": _identity(decision),
        "outcome": _outcome(told, decision, clusters),
    }


def _chain(proxy: Proxy, caller: Caller, *, is_inbound: bool) -> tuple[Listener, Chain]:
    """Where such a call comes in, behind the listener that only takes CONNECT."""
    found: list[tuple[Listener, Chain]] = []
    for listener in proxy.listeners.values():
        if (listener.config.direction is Direction.INBOUND) is is_inbound:
            found += [
                (listener, chain)
                for chain in listener.chains.values()
                if chain.config.manager is not None and not chain.config.manager.takes_connect
            ]
    if not found:
        raise Unanswerable(f"this sidecar has no {'inbound' if is_inbound else 'outbound'} listener for calls")
    if is_inbound:
        fitting = [each for each in found if (each[1].config.tls is not None) is caller.is_secure]
        if not fitting:
            raise Unanswerable(f"no connection in {'TLS' if caller.is_secure else 'plain text'} is taken here")
        found = fitting
    return found[0]


def _read(chain: Chain, authority: str, path: str, fields: Sequence[tuple[str, str]]) -> tuple[Request, Plan]:
    given = {name.lower() for name, _ in fields}
    whole = [(":authority", authority), (":path", path), *(pair for pair in _FIXED if pair[0] not in given), *fields]
    whole.sort(key=lambda pair: not pair[0].startswith(":"))
    block = headers.encode((name.lower().encode(), value.encode()) for name, value in whole)
    try:
        return chain.cache.foresee(block)
    except (Malformed, headers.HeaderError, headers.TooLarge) as error:
        raise Unanswerable(f"such a call is refused as malformed: {error}") from None


def _filters(
    book: FilterBook | None, host: VirtualHost | None, request: Request, plan: Plan, caller: Caller
) -> list[dict[str, str]]:
    if book is None:
        return []
    asked = Asked(plan.values or {}, caller, monotonic())
    found = []
    for http_filter, step in book.named(host, plan.decision.route, request):
        if step is None:
            found.append(
                {"filter": http_filter.name, "kind": "", "verdict": "no part", "why": "nothing for such calls"}
            )
            continue
        verdict = step.foresee(asked)
        found.append(
            {"filter": http_filter.name, "kind": verdict.what, "verdict": verdict.does.value, "why": verdict.why}
        )
    return found


def _route(host: VirtualHost | None, route: Route | None) -> dict[str, Any] | None:
    if host is None:
        return None
    if route is None:
        return {"virtualHost": host.name, "name": "", "rule": "", "number": 0}
    number = next(place for place, each in enumerate(host.routes) if each is route) + 1
    return {"virtualHost": host.name, "name": route.name, "rule": _rule(route.match), "number": number}


def _rule(match: RouteMatch) -> str:
    """The conditions of a route as a sentence."""
    parts = []
    for word, value in (("path is", match.path), ("path begins with", match.prefix), ("path is below", match.folder)):
        if value is not None:
            parts.append(f"{word} {value.decode('latin-1')}")
    if match.regex is not None:
        parts.append(f"path matches {match.regex}")
    parts += [f"header {_condition(header)}" for header in match.headers]
    parts += [f"query {_condition(item)}" for item in match.query]
    return ", ".join(parts) or "any call"


def _condition(match: HeaderMatch) -> str:
    name, no = match.name.decode("latin-1"), "not " if match.invert else ""
    for word, value in (
        ("is", match.exact),
        ("begins with", match.prefix),
        ("ends with", match.suffix),
        ("contains", match.contains),
    ):
        if value is not None:
            return f"{name} {no}{word} {value.decode('latin-1')}"
    if match.present is not None:
        return f"{name} is {'' if match.present is not match.invert else 'not '}there"
    return f"{name} {no}between {match.between}" if match.between else f"{name} {no}matches {match.regex}"


def _answer(decision: Decision) -> dict[str, Any] | None:
    """What the mesh itself answers."""
    if decision.reply is not None:
        code, message, flag, _ = decision.reply
        return {"status": NAMES[code], "message": message, "flag": flag}
    if decision.direct is not None:
        return {"status": f"HTTP {decision.direct.http_status}", "message": "the route itself answers", "flag": ""}
    return None


def _shares(decision: Decision) -> list[tuple[float, Cluster]]:
    if decision.cluster is not None:
        return [(1.0, decision.cluster)]
    before = 0.0
    found = []
    for share, cluster in decision.shares:
        if cluster is not None:
            found.append((share - before, cluster))
        before = share
    return found


def _cluster(cluster: Cluster, share: float, plan: Plan) -> dict[str, Any]:
    decision, now = plan.decision, monotonic()
    load = cluster.high_load if decision.is_urgent else cluster.load
    limits = load.limits
    endpoints = list(cluster.endpoints.values())
    usable = [each for each in endpoints if each.health in (Health.HEALTHY, Health.DEGRADED)]
    does, why = Does.PASS, ""
    breaker = cluster.breaker
    if breaker is not None and not breaker.is_passable(now):
        does = Does.REFUSE if breaker.config.is_enforced else Does.WOULD_REFUSE
        why = f"circuit breaker open: {breaker.explain(now)}"
    if does is not Does.REFUSE and load.active >= limits.max_requests:
        does, why = Does.REFUSE, f"{load.active} calls run already, as many as may"
    if does is not Does.REFUSE and not usable:
        count = len(endpoints)
        # With a panic threshold all are used rather than none.
        if not count or not cluster.config.balancing.panic_threshold:
            does, why = Does.REFUSE, f"none of its {count} endpoints is usable" if count else "it has no endpoints"
    budget = limits.retry_budget
    most = most_retries(load.active, budget.percent, budget.least) if budget is not None else limits.max_retries
    return {
        "cluster": cluster.name,
        "service": cluster.label,
        "share": round(share, 6),
        "verdict": does.value,
        "why": why,
        "balancing": cluster.config.balancing.policy.value,
        "breaker": breaker.state.value if breaker is not None else None,
        "requests": {"active": load.active, "limit": limits.max_requests},
        "pending": {"active": load.pending, "limit": limits.max_pending_requests},
        "retryBudget": {
            "active": load.retrying,
            "limit": most,
            "left": max(0, most - load.retrying),
            "rule": _rule_of(budget),
        },
        "endpoints": [_endpoint(each, now) for each in endpoints[:MAX_ENDPOINTS]],
    }


def _rule_of(budget: Budget | None) -> str:
    return f"{budget.percent:g} % of the calls that run, at least {budget.least}" if budget is not None else ""


def _endpoint(endpoint: Endpoint, now: float) -> dict[str, Any]:
    config, record = endpoint.config, endpoint.record
    told: dict[str, Any] = {
        "address": str(endpoint),
        "health": endpoint.health.value,
        "version": config.version,
        "weight": endpoint.weight,
        "priority": config.priority,
        "locality": "/".join(part for part in config.locality if part),
        "active": endpoint.active,
        "connections": len(endpoint.connections),
        "over": security(endpoint.cluster.config, config) or "plain_text",
        "ejected": record is not None and record.is_ejected,
        "failingCheck": endpoint.checker is not None and endpoint.checker.has_failed,
    }
    outliers = endpoint.cluster.outliers
    if record is not None and record.is_ejected and outliers is not None:
        told["ejectedForS"] = round(max(0.0, record.ejected_at + outliers.detector.sentence_s(record) - now), 3)
    return told


def _timeouts(chain: Chain, plan: Plan) -> dict[str, float]:
    """In seconds; 0 is none."""
    route, retry, manager = plan.decision.route, plan.decision.retry, chain.config.manager
    idle = manager.stream_idle_timeout_s if manager is not None else 0.0
    if route is not None and route.idle_timeout_s is not None:
        idle = route.idle_timeout_s
    return {
        "deadlineS": plan.timeout_s,
        "requestS": plan.response_timeout_s,
        "idleS": idle,
        "perTryS": retry.config.per_try_timeout_s if retry is not None else 0.0,
    }


def _retries(retry: Retry | None) -> dict[str, Any] | None:
    if retry is None:
        return None
    config = retry.config
    return {
        "on": list(config.on),
        "most": config.num_retries,
        "backoffS": [config.backoff_base_s, config.backoff_max_s],
        "otherHostFirst": config.avoid_previous_hosts,
        "hedges": config.hedges,
        "hedgeDelayS": config.hedge_delay_s,
    }


def _identity(decision: Decision) -> dict[str, Any] | None:
    """As whom a called sidecar would see us: by the certificate for the first endpoint that is spoken to by TLS; None in plain text."""
    for _, cluster in _shares(decision):
        for endpoint in cluster.endpoints.values():
            wanted = chosen(cluster.config, endpoint.config)
            if wanted is None:
                continue
            with suppress(TlsError):
                certificates = resolved(wanted, cluster.worker.secrets).certificates
                return _names(certificates[0]) if certificates else {"uris": [], "dns": [], "subject": ""}
    return None


def _names(certificate: TlsCertificate) -> dict[str, Any]:
    # Imported here: a sidecar that nobody asks does not pay for it.
    from cryptography import x509

    leaf = x509.load_pem_x509_certificates(certificate.chain)[0]
    uris: list[str] = []
    dns: list[str] = []
    with suppress(x509.ExtensionNotFound):
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris, dns = (list(names.get_values_for_type(kind)) for kind in (x509.UniformResourceIdentifier, x509.DNSName))
    return {"uris": uris, "dns": dns, "subject": leaf.subject.rfc4514_string()}


def _outcome(filters: Sequence[Mapping[str, str]], decision: Decision, clusters: Sequence[Mapping[str, Any]]) -> str:
    """The end of it in a line."""
    refused = [each for each in filters if each["verdict"] == Does.REFUSE.value]
    if refused:
        return f"refused by {refused[0]['kind']}: {refused[0]['why']}"
    answer = _answer(decision)
    if answer is not None:
        return f"answered here: {answer['status']}: {answer['message']}"
    open_ones = [each for each in clusters if each["verdict"] != Does.REFUSE.value]
    if not open_ones:
        return (
            f'refused: "{clusters[0]["cluster"]}": {clusters[0]["why"]}' if clusters else "refused: there is no cluster"
        )
    goes = ", ".join(each["service"] + (f" ({each['share']:.1%})" if each["share"] < 1.0 else "") for each in open_ones)
    return f"goes to {goes}"
