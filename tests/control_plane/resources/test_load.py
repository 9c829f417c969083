"""YAML to resources: what is taken, and what is said of what is refused."""

import re
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.resources import document
from control_plane.resources.errors import InvalidResource
from control_plane.resources.load import MAX_BYTES, MAX_DOCUMENTS, load
from proto.mesh.v1 import api_pb2
from tests.control_plane import scenario
from tests.control_plane.scenario import Scenario

FAULTS: Final = scenario.read(Path(__file__).with_name("faults.txt"))

SERVICE: Final = """\
apiVersion: remora.dev/v1
kind: Service
metadata: {name: orders}
spec: {}
"""
ROUTE: Final = """\
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: split, namespace: shop, labels: {team: books}}
spec:
  parentRefs: [{name: warehouse}]
  rules:
    - matches:
        - method: {service: bookstore.v1.Warehouse, method: Reserve}
          headers: [{name: x-version, value: "1"}]
      backendRefs:
        - &v1 {name: warehouse-v1, weight: 90}
        - <<: *v1
          name: warehouse-v2
"""
LIMIT: Final = """\
apiVersion: remora.dev/v1
kind: RateLimitPolicy
metadata: {name: limit}
spec:
  targetRefs: [{name: orders}]
  requests: 10
  interval: 1m
"""


def refused(text: str) -> list[str]:
    """What is said of a file that is refused."""
    with pytest.raises(InvalidResource) as caught:
        load(text, "bookstore.yaml")
    return caught.value.faults


def only(text: str) -> api_pb2.Resource:
    """The one resource of a file."""
    (resource,) = load(text, "bookstore.yaml")
    return resource


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.title)
def test_a_fault_names_file_line_field_value_and_way_out(case: Scenario) -> None:
    case.play(lambda text: "\n".join(refused(text)))


def test_every_line_that_is_said_has_file_line_and_code() -> None:
    for case in FAULTS:
        for line in case.expected.splitlines():
            assert re.fullmatch(r"bookstore\.yaml(:\d+)?: .+ \(RMR\d{4}\)", line), line


def test_a_file_over_the_limit_is_not_parsed() -> None:
    (line,) = refused("#" * (MAX_BYTES + 1))
    assert line == f"bookstore.yaml: {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are read (RMR0001)"


def test_a_file_holds_at_most_as_many_resources_as_one_transaction_takes() -> None:
    text = "---\n".join(SERVICE.replace("orders", f"orders-{number}") for number in range(MAX_DOCUMENTS + 1))
    (line,) = refused(text)
    assert line == "bookstore.yaml: 101 resources; at most 100 go in one file (RMR0001)"
    assert len(load(text.rpartition("---\n")[0], "f")) == MAX_DOCUMENTS


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "], ids=["lists", "mappings", "block lists"])
def test_deep_nesting_is_refused_before_it_costs_anything(opening: str) -> None:
    (line,) = refused(opening * 5000)
    assert "RMR0001" in line and "nested deeper than 20 levels" in line


def test_many_values_are_refused() -> None:
    thousand = "a: &a [" + "1," * 999 + "]\n"
    (line,) = refused(thousand + "b: [" + "*a," * (document.MAX_VALUES // 1000) + "]")
    assert "more than 50000 values" in line
    fewer = refused(thousand + "b: [" + "*a," * (document.MAX_VALUES // 1000 - 2) + "]")
    assert "kind: is missing" in fewer[0]


def test_a_namespace_that_is_left_out_is_default() -> None:
    assert only(SERVICE).metadata.namespace == "default"


def test_a_route_has_what_the_gateway_api_says_and_merge_keys_work() -> None:
    spec = only(ROUTE).grpc_route
    assert [(backend.name, backend.weight) for backend in spec.rules[0].backend_refs] == [
        ("warehouse-v1", 90),
        ("warehouse-v2", 90),
    ]
    match = spec.rules[0].matches[0]
    assert (match.method.service, match.method.method) == ("bookstore.v1.Warehouse", "Reserve")
    assert [(header.name, header.value) for header in match.headers] == [("x-version", "1")]


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1s", 10**9),
        ("100ms", 10**8),
        ("1.5s", 15 * 10**8),
        ("0.05000000001s", None),
        ("59.999999999s", 59_999_999_999),
        ("0.00125m", 75_000_000),
        ("5m", 300 * 10**9),
        ("24h", 86400 * 10**9),
        ("1 s", None),
        ("-1s", None),
        ("1s\n", None),
        ("9999999999h", None),
    ],
)
def test_durations_are_exact(text: str, nanoseconds: int | None) -> None:
    file = LIMIT.replace("1m", f'"{text}"')
    if nanoseconds is None:
        assert "is not a duration" in refused(file)[0]
    else:
        assert only(file).rate_limit_policy.interval.ToNanoseconds() == nanoseconds


def test_a_status_in_a_file_is_ignored_since_the_control_plane_writes_it() -> None:
    assert not only(SERVICE + "status: {conditions: []}\n").HasField("status")


def test_an_explicit_text_tag_makes_a_text() -> None:
    assert only(SERVICE.replace("name: orders", "name: !!str 5")).metadata.name == "5"


def test_a_fault_of_a_repeated_value_is_reported_where_it_is_used() -> None:
    text = SERVICE.replace("metadata: {name: orders}", "metadata: {name: &n 5, labels: {a: *n}}")
    assert [line.split(": ")[1] for line in refused(text)] == ["metadata.name", "metadata.labels.a"]


# -- whatever is written -------------------------------------------------------------------------------

_SNIPPETS: Final = [
    *(
        "&a ",
        "*a ",
        "<<: *a",
        "!!binary ",
        "!!set ",
        "!!omap ",
        "!foo ",
        "!!int x",
        "!<!> y",
        "? ",
        ": ",
        "- ",
        "[",
        "]",
    ),
    *("{", "}", "|\n", ">\n", "'", '"', "\t", "%YAML 1.1\n", "#", "@", "`", "~", "null", "true", ".inf", "0x1f", "1e9"),
    *(
        "2001-01-01",
        "=",
        "<<",
        "\x00",
        "\ud800",
        "\n",
        "---\n",
        "...\n",
        "[]: 1\n",
        "{a: b}: c\n",
        "9" * 5000,
        '"\\ud800"',
    ),
]


@st.composite
def _spoiled(draw: st.DrawFn) -> str:
    """A good file with some of it cut out, doubled, or replaced by what YAML has to offer."""
    text = "---\n".join([ROUTE, LIMIT, SERVICE])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(text)))
        width = draw(st.integers(0, 12))
        put = draw(st.sampled_from(_SNIPPETS) | st.just(text[place : place + 40]) | st.text(max_size=3))
        text = text[:place] + put + text[place + width :]
    return text


@settings(max_examples=300, deadline=None)
@given(_spoiled() | st.text(st.characters(exclude_categories=())))
def test_any_text_is_taken_or_refused_and_nothing_else(text: str) -> None:
    try:
        resources = load(text, "f.yaml")
    except InvalidResource as refusal:
        assert refusal.faults
        for line in refusal.faults:
            assert re.fullmatch(r"f\.yaml(:\d+)?: .+ \(RMR\d{4}\)", line, re.DOTALL), line
    else:
        assert resources
