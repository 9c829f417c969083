"""Resources and instances that are valid, by chance (hypothesis)."""

from typing import Any, Final

from google.protobuf import duration_pb2
from hypothesis import strategies as st

from control_plane.resources.check import check
from proto.mesh.v1 import api_pb2, meta_pb2, policy_pb2, resilience_pb2, route_pb2, service_pb2

NAMES: Final = st.sampled_from(["orders", "warehouse", "accounts", "a", "0-9", "x" * 63]) | st.from_regex(
    r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True
)
NAMESPACES: Final = st.sampled_from(["shop", "default", "a-b"])
PORTS: Final = st.sampled_from([1, 80, 50051, 65535])
_TEXTS: Final = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=20)
_LABELS: Final = st.dictionaries(_TEXTS.filter(bool), _TEXTS, max_size=3)
_PATTERNS: Final = st.sampled_from(["v[12]", "a|b", "(?i:x)+", ".*", r"\d{1,3}", "shop\\.[^.]+"])
_SERVICE_NAMES: Final = st.sampled_from(["bookstore.v1.Warehouse", "bookstore.v1.Orders", "Echo"])
_METHOD_NAMES: Final = st.sampled_from(["Reserve", "Get", "Buy_2"])


@st.composite
def metadata(draw: st.DrawFn) -> meta_pb2.Metadata:
    made = meta_pb2.Metadata(
        name=draw(NAMES),
        namespace=draw(NAMESPACES),
        labels=draw(_LABELS),
        annotations=draw(_LABELS),
        generation=draw(st.integers(0, 2**63 - 1)),
        resource_version=draw(st.integers(0, 2**63 - 1)),
    )
    if draw(st.booleans()):
        made.creation_timestamp.FromNanoseconds(draw(st.integers(0, 4 * 10**18)))
    return made


@st.composite
def _match(draw: st.DrawFn) -> route_pb2.GRPCRouteMatch:
    match = route_pb2.GRPCRouteMatch()
    kind = draw(st.sampled_from(["", "Exact", "RegularExpression", "none"]))
    if kind == "RegularExpression":
        match.method.CopyFrom(route_pb2.GRPCMethodMatch(type=kind, service=draw(_PATTERNS), method=draw(_PATTERNS)))
    elif kind != "none":
        service = draw(_SERVICE_NAMES | st.just(""))
        method = draw(_METHOD_NAMES | st.just("") if service else _METHOD_NAMES)
        match.method.CopyFrom(route_pb2.GRPCMethodMatch(type=kind, service=service, method=method))
    for name in draw(st.lists(st.sampled_from(["x-version", "x-user", "canary-bin"]), max_size=2, unique=True)):
        how = draw(st.sampled_from(["", "Exact", "RegularExpression"]))
        match.headers.add(type=how, name=name, value=draw(_PATTERNS))
    return match


@st.composite
def _rule(draw: st.DrawFn) -> route_pb2.GRPCRouteRule:
    rule = route_pb2.GRPCRouteRule(matches=draw(st.lists(_match(), max_size=3)))
    for _ in range(draw(st.integers(1, 3))):
        backend = rule.backend_refs.add(name=draw(NAMES), namespace=draw(NAMESPACES | st.just("")))
        if draw(st.booleans()):
            backend.weight = draw(st.sampled_from([0, 1, 90, 1_000_000]))
    if all(backend.HasField("weight") and not backend.weight for backend in rule.backend_refs):
        rule.backend_refs[0].weight = 1
    for kind in draw(st.lists(st.sampled_from(["Request", "Response"]), max_size=2, unique=True)):
        each = rule.filters.add(type=f"{kind}HeaderModifier")
        modifier = each.request_header_modifier if kind == "Request" else each.response_header_modifier
        modifier.SetInParent()
        names = draw(st.lists(st.sampled_from(["x-a", "X-B", "x-c"]), max_size=3, unique=True))
        for name in names:
            values = st.sampled_from(["1", "50%", "%REQ(x)%"])
            draw(st.sampled_from([modifier.set, modifier.add])).add(name=name, value=draw(values))
        if "x-a" not in names:
            modifier.remove.append("x-a")
    if draw(st.booleans()):
        mirror = rule.filters.add(type="RequestMirror").request_mirror
        mirror.backend_ref.name, mirror.backend_ref.namespace = draw(NAMES), draw(NAMESPACES | st.just(""))
        if draw(st.booleans()):
            mirror.percent = draw(st.integers(0, 100))
        elif draw(st.booleans()):
            mirror.fraction.denominator = draw(st.sampled_from([0, 3, 100, 1000, 1_000_000]))
            mirror.fraction.numerator = draw(st.integers(0, mirror.fraction.denominator or 100))
    return rule


@st.composite
def route_specs(draw: st.DrawFn) -> route_pb2.GRPCRouteSpec:
    parents = draw(
        st.lists(st.tuples(NAMES, NAMESPACES | st.just(""), PORTS | st.just(0)), min_size=1, max_size=3, unique=True)
    )
    return route_pb2.GRPCRouteSpec(
        parent_refs=[route_pb2.ParentReference(name=name, namespace=where, port=port) for name, where, port in parents],
        rules=draw(st.lists(_rule(), min_size=1, max_size=3)),
    )


@st.composite
def _target_refs(draw: st.DrawFn) -> list[policy_pb2.TargetRef]:
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    return [policy_pb2.TargetRef(name=name, kind=draw(st.sampled_from(["", "Service"]))) for name in names]


_HASH_KEYS: Final = (
    policy_pb2.HashKey(header="x-user", terminal=True),
    policy_pb2.HashKey(cookie="session", cookie_ttl=duration_pb2.Duration(seconds=60)),
    policy_pb2.HashKey(query_parameter="page"),
    policy_pb2.HashKey(source=policy_pb2.HashKey.RemoteAddress),
    policy_pb2.HashKey(source=policy_pb2.HashKey.Path),
)


@st.composite
def _balancing(draw: st.DrawFn) -> policy_pb2.LoadBalancingPolicySpec:
    spec = policy_pb2.LoadBalancingPolicySpec
    algorithm = draw(st.sampled_from(spec.Algorithm.values()))
    places = st.lists(st.sampled_from(["eu", "eu/a", "eu/b", "us/a/1"]), max_size=3, unique=True)
    made = spec(
        target_refs=draw(st.one_of(st.just([]), _target_refs())),
        algorithm=algorithm,
        panic_threshold=draw(st.integers(0, 100)),
        failover=draw(places),
        locality_weights=dict.fromkeys(draw(places), draw(st.integers(1, 1_000_000))),
    )
    if algorithm not in (spec.RingHash, spec.Maglev) and not made.locality_weights:
        made.prefer_zone = draw(st.booleans())
    if algorithm == spec.LeastRequest:
        made.choices = draw(st.sampled_from([0, 2, 100]))
    if algorithm in (spec.RoundRobin, spec.LeastRequest) and draw(st.booleans()):
        made.slow_start.FromNanoseconds(draw(st.integers(1_000_000, 86_400 * 10**9)))
    if algorithm == spec.PeakEwma and draw(st.booleans()):
        made.decay.FromNanoseconds(draw(st.integers(1_000_000, 3_600 * 10**9)))
        made.penalty.FromNanoseconds(draw(st.integers(1_000_000, 300 * 10**9)))
    if algorithm == spec.RingHash:
        made.ring_size = draw(st.integers(0, 1_048_576))
    if algorithm in (spec.RingHash, spec.Maglev):
        made.hash_on.extend(draw(st.lists(st.sampled_from(_HASH_KEYS), min_size=1, max_size=5, unique_by=str)))
    return made


@st.composite
def _limits(draw: st.DrawFn) -> policy_pb2.RateLimitPolicySpec:
    spec = policy_pb2.RateLimitPolicySpec
    algorithm = draw(st.sampled_from(spec.Algorithm.values()))
    made = spec(
        target_refs=draw(_target_refs()),
        mode=draw(st.sampled_from(policy_pb2.Mode.values())),
        algorithm=algorithm,
        requests=draw(st.integers(1, 10_000 if algorithm == spec.SlidingLog else 100_000_000)),
        scope=draw(st.sampled_from(spec.Scope.values())),
    )
    if algorithm in (spec.TokenBucket, spec.Gcra):
        made.burst = draw(st.integers(0, 100_000_000))
    if algorithm != spec.Concurrency and draw(st.booleans()):
        made.interval.FromNanoseconds(draw(st.integers(50_000_000, 86_400 * 10**9)))
    if algorithm == spec.LeakyBucket and draw(st.booleans()):
        made.max_wait.FromNanoseconds(draw(st.integers(0, 60 * 10**9)))
    keys = st.sampled_from([("x-user", "Header"), ("x-tier", "Header"), ("", "RemoteAddress"), ("", "Method")])
    for header, source in draw(st.lists(keys, max_size=4, unique=True)):
        made.keys.add(header=header, source=policy_pb2.LimitKey.Source.Value(source))
    if made.keys:
        made.max_keys = draw(st.integers(0, 1_000_000))
    return made


@st.composite
def _authorization(draw: st.DrawFn) -> policy_pb2.AuthorizationPolicySpec:
    spec = policy_pb2.AuthorizationPolicySpec(
        mode=draw(st.sampled_from(policy_pb2.Mode.values())),
        action=draw(st.sampled_from(policy_pb2.AuthorizationPolicySpec.Action.values())),
        target_refs=draw(_target_refs()) if draw(st.booleans()) else [],
    )
    for _ in range(draw(st.integers(0, 2))):
        rule = spec.rules.add()
        for _ in range(draw(st.integers(0, 2))):
            source = getattr(rule, "from").add(services=[draw(NAMES)])
            if draw(st.booleans()):
                source.namespaces.append(draw(NAMESPACES))
            if draw(st.booleans()):
                source.identities.append(draw(st.sampled_from(["*", "spiffe://a/*", "*/b", "spiffe://a/b"])))
            if draw(st.booleans()):
                source.addresses.append(draw(st.sampled_from(["10.0.0.0/8", "::1", "127.0.0.1", "2001:db8::/32"])))
        for _ in range(draw(st.integers(0, 2))):
            target = rule.to.add(methods=[draw(st.sampled_from(["a.B/*", "a.B/C"]))])
            if draw(st.booleans()):
                target.headers.add(
                    name="x-a", value="a.*", type=draw(st.sampled_from(["", "Exact", "RegularExpression"]))
                )
    return spec


@st.composite
def _services(draw: st.DrawFn) -> service_pb2.ServiceSpec:
    ports = draw(st.lists(PORTS, max_size=3, unique=True))
    selector = {} if draw(st.booleans()) else {draw(st.sampled_from(["service", "version", "team"])): draw(NAMES)}
    return service_pb2.ServiceSpec(
        ports=[service_pb2.ServicePort(name="grpc", port=port) for port in ports], selector=selector
    )


JWKS = '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'


@st.composite
def _authentication(draw: st.DrawFn) -> policy_pb2.AuthenticationPolicySpec:
    return policy_pb2.AuthenticationPolicySpec(
        target_refs=draw(st.one_of(st.just([]), _target_refs())),
        mode=draw(st.sampled_from(policy_pb2.Mode.values())),
        mutual_tls=draw(st.sampled_from(policy_pb2.AuthenticationPolicySpec.MutualTls.values())),
        jwt=draw(st.sampled_from([[], [policy_pb2.TokenIssuer(issuer="ann.test", jwks=JWKS)]])),
    )


def _seconds(least: float = 0.01, most: float = 60.0) -> st.SearchStrategy[Any]:
    return st.floats(least, most).map(lambda value: duration_pb2.Duration(seconds=int(value) or 1))


@st.composite
def _breaking(draw: st.DrawFn) -> resilience_pb2.CircuitBreakerPolicySpec:
    spec = resilience_pb2.CircuitBreakerPolicySpec
    counts = st.integers(0, 1000)
    parts: dict[str, Any] = {
        "limits": spec.Limits(
            max_connections=draw(counts), max_requests=draw(counts), retry_budget_percent=draw(st.integers(0, 100))
        ),
        "ejection": spec.Ejection(
            consecutive_errors=draw(counts),
            interval=draw(st.none() | _seconds()),
            failure_percent=draw(st.integers(1, 100)),
            minimum_calls=draw(counts),
            max_percent=draw(st.integers(0, 100)),
        ),
        "breaker": spec.Breaker(minimum_calls=draw(counts), window=draw(st.none() | _seconds()), probes=draw(counts)),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(parts)), min_size=1))
    return spec(
        target_refs=draw(st.one_of(st.just([]), _target_refs())),
        mode=draw(st.sampled_from(policy_pb2.Mode.values())),
        **{name: parts[name] for name in chosen},
    )


@st.composite
def _retries(draw: st.DrawFn) -> resilience_pb2.RetryPolicySpec:
    spec = resilience_pb2.RetryPolicySpec
    made = spec(
        target_refs=draw(st.one_of(st.just([]), _target_refs())),
        mode=draw(st.sampled_from([policy_pb2.Enforce, policy_pb2.Off])),
        on=draw(st.lists(st.sampled_from(spec.Condition.values()), max_size=5, unique=True)),
        idempotent=True,
        idempotency_key=draw(st.sampled_from(["", "x-key"])),
    )
    if draw(st.booleans()):
        made.retries = draw(st.integers(0, 10))
    if spec.Reset in made.on:
        made.per_try_timeout.CopyFrom(draw(_seconds()))
    return made


@st.composite
def _times(draw: st.DrawFn) -> resilience_pb2.TimeoutPolicySpec:
    return resilience_pb2.TimeoutPolicySpec(
        target_refs=draw(st.one_of(st.just([]), _target_refs())),
        request=draw(_seconds()),
        idle=draw(st.none() | _seconds()),
    )


@st.composite
def _faults(draw: st.DrawFn) -> resilience_pb2.FaultPolicySpec:
    spec = resilience_pb2.FaultPolicySpec
    return spec(
        target_refs=draw(_target_refs()),
        delay=spec.Delay(duration=draw(_seconds()), percent=draw(st.floats(0, 100))),
        abort=spec.Abort(
            status=draw(st.sampled_from(["ABORTED", "INTERNAL"])), percent=draw(st.none() | st.floats(0, 100))
        ),
        headers={"x-fault": "yes"},
        max_active=draw(st.integers(0, 9)),
    )


_SPECS: Final[dict[str, st.SearchStrategy[Any]]] = {
    "service": _services(),
    "grpc_route": route_specs(),
    "load_balancing_policy": _balancing(),
    "rate_limit_policy": _limits(),
    "authentication_policy": _authentication(),
    "authorization_policy": _authorization(),
    "circuit_breaker_policy": _breaking(),
    "retry_policy": _retries(),
    "timeout_policy": _times(),
    "fault_policy": _faults(),
}


@st.composite
def resources(draw: st.DrawFn) -> api_pb2.Resource:
    """Any valid resource."""
    kind = draw(st.sampled_from(sorted(_SPECS)))
    made = api_pb2.Resource(metadata=draw(metadata()), **{kind: draw(_SPECS[kind])})
    assert check(made) == []
    return made


@st.composite
def instances(draw: st.DrawFn) -> service_pb2.Instance:
    """Any valid instance, as the registry stores it."""
    return service_pb2.Instance(
        id=draw(st.from_regex(r"[A-Za-z0-9._-]{1,12}", fullmatch=True)),
        service=draw(NAMES),
        namespace=draw(NAMESPACES),
        address=draw(st.sampled_from(["127.0.0.1", "10.1.2.3", "::1", "2001:db8::1"])),
        port=draw(PORTS),
        version=draw(st.sampled_from(["", "v1", "1.2.3+build"])),
        weight=draw(st.sampled_from([1, 7, 1_000_000])),
        labels=draw(_LABELS),
        locality=service_pb2.Locality(
            region=draw(st.sampled_from(["", "eu"])), zone=draw(st.sampled_from(["", "eu-1"]))
        ),
        health=draw(st.sampled_from([each for each in service_pb2.Health.values() if each != service_pb2.HELD])),
        node_id=draw(st.sampled_from(["", "node"])),
        mutual_tls=draw(st.booleans()),
    )
