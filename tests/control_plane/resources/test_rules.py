"""`validate.rules`, family by family: on messages made for the test, on ours, and on Envoy's own."""

from typing import Any, Final

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, json_format, message_factory, struct_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from validate import validate_pb2

from control_plane.resources import rules
from control_plane.translate.snapshot import ORDER
from proto.mesh.v1 import api_pb2, service_pb2

TYPES: Final = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "double": descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE,
}
_count = 0


def message_with(rule: dict[str, Any], value: Any) -> Message:
    """A message with one field, `value`, that has this rule."""
    global _count
    _count += 1
    family = next(iter(rule))
    is_repeated = family == "repeated"
    kind = next(iter(rule["repeated"].get("items", {"string": {}}))) if is_repeated else family
    file = descriptor_pb2.FileDescriptorProto(
        name=f"rules_{_count}.proto", package=f"rules{_count}", syntax="proto3", dependency=["validate/validate.proto"]
    )
    message = file.message_type.add(name="Subject")
    field = message.field.add(name="value", number=1, type=TYPES[kind])
    field.label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
    json_format.ParseDict(rule, field.options.Extensions[validate_pb2.rules])
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"rules{_count}.Subject"))(value=value)


def said(message: Message) -> list[str]:
    return [f"{fault.path}: {fault.text}" for fault in rules.faults(message)]


@pytest.mark.parametrize(
    ("rule", "good", "bad", "complaint"),
    [
        ({"uint32": {"gte": 1}}, 1, 0, "0 is out of range; at least 1 is needed"),
        ({"uint32": {"lte": 9}}, 9, 10, "10 is out of range; at most 9 is allowed"),
        ({"int64": {"gt": -1}}, 0, -1, "-1 is out of range; more than -1 is needed"),
        ({"double": {"lt": 1.0}}, 0.9, 1.0, "1.0 is out of range; less than 1.0 is allowed"),
        ({"uint32": {"const": 3}}, 3, 4, "4 is not allowed; 3 is needed"),
        ({"uint32": {"in": [1, 2]}}, 2, 3, "3 is not allowed; allowed: 1, 2"),
        ({"uint32": {"not_in": [7]}}, 6, 7, "7 is not allowed; any but 7"),
        ({"uint32": {"gte": 5, "ignore_empty": True}}, 0, 4, "4 is out of range; at least 5 is needed"),
        ({"bool": {"const": True}}, True, False, "must be true"),
        ({"string": {"min_len": 1}}, "x", "", "is missing; it must be given"),
        ({"string": {"min_len": 3}}, "äöü", "ab", '"ab" is too short; at least 3 characters are needed'),
        ({"string": {"min_bytes": 3}}, "äb", "ab", '"ab" is too short; at least 3 bytes are needed'),
        ({"string": {"max_len": 2}}, "äö", "abc", '"abc" is too long (3 characters); at most 2 are allowed'),
        ({"string": {"max_bytes": 3}}, "äa", "äö", '"äö" is too long (4 bytes); at most 3 are allowed'),
        ({"string": {"const": "a"}}, "a", "b", '"b" is not allowed; "a" is needed'),
        ({"string": {"in": ["", "a"]}}, "", "b", '"b" is not allowed; allowed: "a", or leave it out'),
        ({"string": {"not_in": ["a"]}}, "b", "a", '"a" is not allowed'),
        ({"string": {"prefix": "a/"}}, "a/b", "b", '"b" must begin with "a/"'),
        ({"string": {"suffix": ".a"}}, "b.a", "b", '"b" must end with ".a"'),
        ({"string": {"ip": True}}, "::1", "localhost", '"localhost" is no IP address'),
        ({"string": {"pattern": "^a+$"}}, "aa", "ab", '"ab" has a form that is not allowed; it must match ^a+$'),
        # Python's `$` lets a last line feed pass; RE2's, which the rule is written for, does not.
        ({"string": {"pattern": "^a$"}}, "a", "a\n", '"a\\n" has a form that is not allowed; it must match ^a$'),
        ({"string": {"pattern": "^\\d+$"}}, "1", "١", '"١" has a form that is not allowed; it must match ^\\d+$'),
        (
            {"string": {"pattern": "^a$", "ignore_empty": True}},
            "",
            "b",
            '"b" has a form that is not allowed; it must match ^a$',
        ),
        (
            {"string": {"well_known_regex": "HTTP_HEADER_NAME"}},
            ":path",
            "a b",
            '"a b" has a form that is not allowed; it must be a valid http header name',
        ),
        (
            {"string": {"well_known_regex": "HTTP_HEADER_NAME", "strict": False}},
            "a b",
            "a\nb",
            '"a\\nb" has a form that is not allowed; it must be a valid http header name',
        ),
        (
            {"string": {"well_known_regex": "HTTP_HEADER_VALUE"}},
            "a\tb é",
            "a\x00",
            '"a\\x00" has a form that is not allowed; it must be a valid http header value',
        ),
        ({"bytes": {"min_len": 1}}, b"x", b"", "has 0 bytes; at least 1 are needed"),
        ({"bytes": {"max_len": 1}}, b"x", b"xy", "has 2 bytes; at most 1 are allowed"),
        ({"repeated": {"min_items": 1}}, ["a"], [], "has 0 entries; at least 1 is needed"),
        ({"repeated": {"max_items": 1}}, ["a"], ["a", "b"], "has 2 entries; at most 1 are allowed"),
        ({"repeated": {"unique": True}}, ["a", "b"], ["a", "a"], "entry 1 stands twice; keep one"),
        (
            {"repeated": {"items": {"string": {"min_len": 1}}}},
            ["a"],
            ["a", ""],
            "entry 1: is missing; it must be given",
        ),
        (
            {"repeated": {"items": {"uint32": {"lt": 9}}}},
            [1],
            [9],
            "entry 0: 9 is out of range; less than 9 is allowed",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_rule(rule: dict[str, Any], good: Any, bad: Any, complaint: str) -> None:
    if "string" in rule and rule["string"].get("well_known_regex") and "strict" not in rule["string"]:
        rule = {"string": {**rule["string"], "strict": True}}
    assert said(message_with(rule, good)) == []
    assert said(message_with(rule, bad)) == [f"value: {complaint}"]


@pytest.mark.parametrize(
    "rule", [{"string": {"email": True}}, {"string": {"uuid": True}}, {"bytes": {"prefix": "eA=="}}]
)
def test_a_rule_that_is_not_interpreted_is_an_error_and_not_a_pass(rule: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match="is not interpreted"):
        said(message_with(rule, "x" if "string" in rule else b"x"))


def test_every_rule_in_everything_that_is_sent_or_taken_is_interpreted() -> None:
    to_see: list[Descriptor] = [
        descriptor_pool.Default().FindMessageTypeByName(url.rpartition("/")[2]) for url in ORDER
    ]
    to_see += [
        local_rate_limit_pb2.LocalRateLimit.DESCRIPTOR,
        http_connection_manager_pb2.HttpConnectionManager.DESCRIPTOR,
        *api_pb2.DESCRIPTOR.message_types_by_name.values(),
    ]
    seen: set[str] = set()
    while to_see:
        descriptor = to_see.pop()
        if descriptor.full_name not in seen:
            seen.add(descriptor.full_name)
            list(rules.faults(message_factory.GetMessageClass(descriptor)()))  # raises for a rule that it does not know
            to_see += [field.message_type for field in descriptor.fields if field.message_type is not None]
    assert len(seen) > 300


# -- ours ----------------------------------------------------------------------------------------------


def test_a_required_message_and_a_required_choice() -> None:
    assert said(api_pb2.Resource()) == [
        ": nothing is set for spec; set service or grpcRoute or loadBalancingPolicy or rateLimitPolicy or authenticationPolicy"
        " or authorizationPolicy or circuitBreakerPolicy or retryPolicy or timeoutPolicy or faultPolicy",
        "metadata: is missing; it must be given",
    ]


def test_keys_and_values_of_a_map() -> None:
    instance = service_pb2.Instance(id="a", service="b", address="::1", port=1, labels={"": "v", "k": "v" * 64})
    assert said(instance) == [
        "labels: key is missing; it must be given",
        f'labels: value of "k": "{"v" * 64}" is too long (64 characters); at most 63 are allowed',
    ]


def test_an_enum_value_of_a_later_release_is_refused() -> None:
    instance = service_pb2.Instance(id="a", service="b", address="::1", port=1, health=9)  # type: ignore[arg-type]
    assert said(instance) == ["health: 9 is not allowed; allowed: HEALTH_UNKNOWN, HEALTHY, UNHEALTHY, DRAINING"]


def test_an_enum_value_that_is_excluded() -> None:
    request = api_pb2.SetHealthRequest(instance=api_pb2.InstanceKey(service="a", id="b"))
    assert said(request) == ["health: HEALTH_UNKNOWN is not allowed; allowed: HEALTHY, UNHEALTHY, DRAINING"]


def test_a_duration_out_of_bounds() -> None:
    request = api_pb2.WaitProgrammedRequest()
    request.timeout.FromSeconds(-1)
    assert said(request) == ["timeout: -1s is out of range; at least 0s is needed"]


# -- Envoy's -------------------------------------------------------------------------------------------


def test_a_message_of_envoy_is_checked_with_its_own_rules() -> None:
    cluster = cluster_pb2.Cluster(name="")
    cluster.connect_timeout.FromSeconds(0)
    cluster.per_connection_buffer_limit_bytes.SetInParent()
    cluster.load_assignment.endpoints.add().lb_endpoints.add().load_balancing_weight.value = 0
    assert said(cluster) == [
        "name: is missing; it must be given",
        "connectTimeout: 0s is out of range; more than 0s is needed",
        "loadAssignment.clusterName: is missing; it must be given",
        "loadAssignment.endpoints[0].lbEndpoints[0].loadBalancingWeight: 0 is out of range; at least 1 is needed",
    ]


def test_a_required_choice_deep_inside() -> None:
    table = route_pb2.RouteConfiguration(virtual_hosts=[route_components_pb2.VirtualHost(name="a", domains=["a"])])
    table.virtual_hosts[0].routes.add(match=route_components_pb2.RouteMatch(prefix="/"))
    table.virtual_hosts[0].routes.add(match=route_components_pb2.RouteMatch())
    found = said(table)
    assert any("virtualHosts[0].routes[0]: nothing is set for action" in line for line in found)
    assert any("virtualHosts[0].routes[1].match: nothing is set for path_specifier" in line for line in found)


def test_what_is_packed_in_an_any_is_checked_too() -> None:
    manager = http_connection_manager_pb2.HttpConnectionManager()
    packed = any_pb2.Any()
    packed.Pack(manager)
    listener = listener_pb2.Listener(name="in", filter_chains=[listener_components_pb2.FilterChain()])
    listener.filter_chains[0].filters.add(name="hcm", typed_config=packed)
    assert "filterChains[0].filters[0].typedConfig.statPrefix: is missing; it must be given" in said(listener)
    packed.value = b"\xff"
    listener.filter_chains[0].filters[0].typed_config.CopyFrom(packed)
    (line,) = said(listener)
    assert line.endswith(
        "the value is no envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    )


def test_an_any_of_a_type_that_is_not_loaded_is_left_alone() -> None:
    listener = listener_pb2.Listener(name="in", filter_chains=[listener_components_pb2.FilterChain()])
    listener.filter_chains[0].filters.add(name="x", typed_config=any_pb2.Any(type_url="t/not.loaded", value=b"\xff"))
    assert said(listener) == []


def test_nesting_without_end_is_refused() -> None:
    root = inner = struct_pb2.Value()
    for _ in range(rules.MAX_DEPTH):
        inner = inner.list_value.values.add()
    (line,) = said(root)
    assert f"nested deeper than {rules.MAX_DEPTH} levels" in line
