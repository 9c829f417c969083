"""The mesh's kinds as CustomResourceDefinitions, made from `proto/`: `make crds` writes them into the chart.

GRPCRoute is the Gateway API's own definition and is not made here. The API server checks by these what a schema can say, so that
`kubectl apply` answers at once; what takes more (regular expressions, names that stand twice) is said by the control plane's check, as everywhere.
"""

import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from control_plane.kubernetes.schema import Rule, Schema, Writer, comments_of
from control_plane.resources import kinds
from control_plane.resources.check import BALANCING_FIELDS, HASH_KEYS, LIMIT_FIELDS, MAX_LOGGED
from control_plane.resources.kinds import Kind
from proto.mesh.v1 import api_pb2, meta_pb2, policy_pb2, resilience_pb2, service_pb2

GROUP, _, VERSION = kinds.REMORA.partition("/")
_HEADER: Final = "# Made from proto/mesh/v1 by `make crds`: change it there.\n"

Column = tuple[str, str, str]
"""Name, JSONPath, type."""


def given(descriptor: Descriptor, name: str) -> str:
    """CEL: a field says something, as proto3 means it."""
    field = descriptor.fields_by_name[name]
    there = f"has(self.{field.json_name})"
    if field.is_repeated:
        return f"({there} && size(self.{field.json_name}) > 0)"
    if field.has_presence:
        return there
    if field.enum_type is not None:
        return f"({there} && self.{field.json_name} != '{field.enum_type.values_by_number[0].name}')"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return f"({there} && self.{field.json_name})"
    nothing = "''" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else "0"
    return f"({there} && self.{field.json_name} != {nothing})"


def _one_of(descriptor: Descriptor, *names: str) -> Rule:
    words = ", ".join(_spelled(descriptor, name) for name in names[:-1]) + f" and {_spelled(descriptor, names[-1])}"
    listed = ", ".join(given(descriptor, name) for name in names)
    return Rule(f"[{listed}].filter(each, each).size() == 1", f"one of {words} must be given")


def _any_of(descriptor: Descriptor, *names: str) -> Rule:
    words = " or ".join(_spelled(descriptor, name) for name in names)
    return Rule(" || ".join(given(descriptor, name) for name in names), f"does nothing; say {words}")


def _needs(descriptor: Descriptor, name: str, other: str) -> Rule:
    words = f"{_spelled(descriptor, name)} means nothing without {_spelled(descriptor, other)}"
    return Rule(f"!{given(descriptor, name)} || {given(descriptor, other)}", words)


def _not_both(descriptor: Descriptor, name: str, other: str) -> Rule:
    words = f"{_spelled(descriptor, name)} means nothing with {_spelled(descriptor, other)}; leave one of them out"
    return Rule(f"!({given(descriptor, name)} && {given(descriptor, other)})", words)


def _longer(descriptor: Descriptor, short: str, long: str) -> Rule:
    first, last = _spelled(descriptor, short), _spelled(descriptor, long)
    holds = f"!has(self.{first}) || !has(self.{last}) || duration(self.{last}) >= duration(self.{first})"
    return Rule(holds, f"{last} is less than {first}; raise it")


def _only_with(descriptor: Descriptor, fields: Mapping[str, tuple[str, ...]]) -> list[Rule]:
    """Fields that only some algorithms have."""
    return [
        Rule(
            f"!{given(descriptor, name)} || self.algorithm in {list(takers)!r}",
            f"{_spelled(descriptor, name)} means something only with {', '.join(takers)}",
        )
        for name, takers in fields.items()
    ]


def _spelled(descriptor: Descriptor, name: str) -> str:
    return str(descriptor.fields_by_name[name].json_name)


def _not_shadow(why: str) -> Rule:
    return Rule("self.mode != 'Shadow'", f"mode Shadow means nothing here: {why}; say Enforce or Off")


_SERVICE: Final = service_pb2.ServiceSpec.DESCRIPTOR
_EXTERNAL: Final = service_pb2.External.DESCRIPTOR
_BALANCING: Final = policy_pb2.LoadBalancingPolicySpec.DESCRIPTOR
_HASH_KEY: Final = policy_pb2.HashKey.DESCRIPTOR
_LIMIT: Final = policy_pb2.RateLimitPolicySpec.DESCRIPTOR
_LIMIT_KEY: Final = policy_pb2.LimitKey.DESCRIPTOR
_SOURCE: Final = policy_pb2.CallSource.DESCRIPTOR
_TARGET: Final = policy_pb2.CallTarget.DESCRIPTOR
_BREAKING: Final = resilience_pb2.CircuitBreakerPolicySpec.DESCRIPTOR
_EJECTION: Final = resilience_pb2.CircuitBreakerPolicySpec.Ejection.DESCRIPTOR
_BREAKER: Final = resilience_pb2.CircuitBreakerPolicySpec.Breaker.DESCRIPTOR
_RETRY: Final = resilience_pb2.RetryPolicySpec.DESCRIPTOR
_HEDGE: Final = resilience_pb2.RetryPolicySpec.Hedge.DESCRIPTOR
_TIMEOUT: Final = resilience_pb2.TimeoutPolicySpec.DESCRIPTOR
_FAULT: Final = resilience_pb2.FaultPolicySpec.DESCRIPTOR
_DELAY: Final = resilience_pb2.FaultPolicySpec.Delay.DESCRIPTOR
_HASHED: Final = list(BALANCING_FIELDS["hash_on"])

RULES: Final[Mapping[str, tuple[Rule, ...]]] = {
    _SERVICE.full_name: (_not_both(_SERVICE, "external", "selector"),),
    _EXTERNAL.full_name: (
        _one_of(_EXTERNAL, "dns", "addresses"),
        Rule(f"!{given(_EXTERNAL, 'dns')} || {given(_EXTERNAL, 'port')}", "dns needs port, the one behind the name"),
        _not_both(_EXTERNAL, "port", "addresses"),
    ),
    _BALANCING.full_name: (
        *_only_with(_BALANCING, BALANCING_FIELDS),
        Rule(
            f"!(self.algorithm in {_HASHED!r}) || {given(_BALANCING, 'hash_on')}",
            "hashOn is needed with RingHash and Maglev: without it they have no key to go by",
        ),
        Rule(
            f"!{given(_BALANCING, 'prefer_zone')} || !(self.algorithm in {_HASHED!r})",
            "preferZone does not go with RingHash and Maglev; leave one out",
        ),
        _not_both(_BALANCING, "prefer_zone", "locality_weights"),
        Rule("!has(self.choices) || self.choices != 1", "choices: 1 leaves no choice; take 2 or more, or Random"),
    ),
    _HASH_KEY.full_name: (_one_of(_HASH_KEY, *HASH_KEYS), _needs(_HASH_KEY, "cookie_ttl", "cookie")),
    _LIMIT.full_name: (
        *_only_with(_LIMIT, LIMIT_FIELDS),
        Rule(
            f"self.algorithm != 'SlidingLog' || self.requests <= {MAX_LOGGED}",
            f"at most {MAX_LOGGED} requests with SlidingLog; or take SlidingWindow",
        ),
        _needs(_LIMIT, "max_keys", "keys"),
    ),
    _LIMIT_KEY.full_name: (_one_of(_LIMIT_KEY, "header", "source"),),
    _SOURCE.full_name: (
        Rule(
            " || ".join(given(_SOURCE, name) for name in ("services", "namespaces", "identities", "addresses")),
            "names nobody; give one of its fields",
        ),
    ),
    _TARGET.full_name: (
        Rule(
            " || ".join(given(_TARGET, name) for name in ("methods", "headers")),
            "names no call; give one of its fields",
        ),
    ),
    _BREAKING.full_name: (_any_of(_BREAKING, "limits", "ejection", "breaker"),),
    _EJECTION.full_name: (
        _longer(_EJECTION, "base_time", "max_time"),
        _needs(_EJECTION, "minimum_calls", "failure_percent"),
    ),
    _BREAKER.full_name: (_longer(_BREAKER, "open", "max_open"), _needs(_BREAKER, "slow_percent", "slow_call")),
    _RETRY.full_name: (
        _not_shadow("a retry cannot be counted without being made"),
        Rule(
            "!has(self.on) || self.on.all(each, each in ['ConnectFailure', 'RefusedStream']) || "
            f"{given(_RETRY, 'idempotent')} || {given(_RETRY, 'idempotency_key')}",
            "on names what may repeat a call that was processed already; say idempotent: true, or idempotencyKey: HEADER",
        ),
        Rule(
            "!has(self.perTryTimeout) || (has(self.on) && 'Reset' in self.on)",
            "perTryTimeout only leads to another try with on: [Reset]; add that",
        ),
        _needs(_RETRY, "max_backoff", "backoff"),
        Rule(
            f"!has(self.hedge) || {given(_RETRY, 'idempotent')}",
            "hedge makes every slow call happen twice; say idempotent: true if that does no harm",
        ),
        _longer(_RETRY, "backoff", "max_backoff"),
    ),
    _HEDGE.full_name: (Rule("has(self.delay)", "delay is missing; say after how long, such as 50ms"),),
    _TIMEOUT.full_name: (
        _any_of(_TIMEOUT, "request", "idle"),
        _not_shadow("remora_request_duration_seconds says what a time-out would end"),
    ),
    _FAULT.full_name: (
        _any_of(_FAULT, "delay", "abort"),
        _not_shadow("a fault that is not injected has no effect to look at"),
    ),
    _DELAY.full_name: (Rule("has(self.duration)", "duration is missing; say how long, such as 200ms"),),
}
"""What `control_plane.resources.check` says too, as far as CEL can: an answer before anything is stored."""

_TARGETS: Final = ("Targets", ".spec.targetRefs[*].name", "string")
_MODE: Final = ("Mode", ".spec.mode", "string")
_COLUMNS: Final[Mapping[str, tuple[Column, ...]]] = {
    "Service": (("DNS", ".spec.external.dns", "string"),),
    "LoadBalancingPolicy": (_TARGETS, ("Algorithm", ".spec.algorithm", "string")),
    "RateLimitPolicy": (_TARGETS, _MODE, ("Requests", ".spec.requests", "integer")),
    "CircuitBreakerPolicy": (_TARGETS, _MODE),
    "RetryPolicy": (_TARGETS, _MODE),
    "TimeoutPolicy": (_TARGETS, _MODE, ("Request", ".spec.request", "string")),
    "FaultPolicy": (_TARGETS, _MODE),
    "AuthenticationPolicy": (_TARGETS, _MODE, ("MutualTLS", ".spec.mutualTls", "string")),
    "AuthorizationPolicy": (_TARGETS, _MODE, ("Action", ".spec.action", "string")),
}
_STATE: Final[tuple[Column, ...]] = (
    *((name, f'.status.conditions[?(@.type=="{name}")].status', "string") for name in ("Accepted", "Programmed")),
    ("Age", ".metadata.creationTimestamp", "date"),
)


def definition(kind: Kind, comments: Mapping[str, str]) -> Schema:
    """One kind's CustomResourceDefinition."""
    writer = Writer(comments, RULES)
    spec = api_pb2.Resource.DESCRIPTOR.fields_by_name[kind.field].message_type
    assert spec is not None
    columns = [{"name": name, "type": type_, "jsonPath": path} for name, path, type_ in (*_COLUMNS[kind.name], *_STATE)]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "remora", "app.kubernetes.io/part-of": "remora"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "categories": ["remora"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "required": ["spec"],
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object", "properties": {"name": _name(writer)}},
                                "spec": writer.message(spec, is_spec=True),
                                "status": _status(writer),
                            },
                        }
                    },
                }
            ],
        },
    }


def _name(writer: Writer) -> Schema:
    """Names are those of services, labels of DNS; Kubernetes alone would take longer ones."""
    schema = writer.message(meta_pb2.Metadata.DESCRIPTOR)["properties"]["name"]
    return {name: schema[name] for name in ("type", "maxLength", "pattern")}


def _status(writer: Writer) -> Schema:
    """Conditions, one of each type, as kubectl and others wait for them."""
    status = writer.message(meta_pb2.Status.DESCRIPTOR)
    conditions = status["properties"]["conditions"]
    conditions |= {"maxItems": 16, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    condition = conditions["items"]
    condition["required"] = ["type", "status"]
    condition["properties"]["status"]["enum"] = ["True", "False", "Unknown"]
    condition["properties"]["message"]["maxLength"] = 32768
    condition["properties"]["lastTransitionTime"] = {
        "type": "string",
        "format": "date-time",
        "description": "When `status` became what it is.",
    }
    return status


def definitions(files: FileDescriptorSet) -> dict[str, str]:
    """All definitions as YAML, by file name. `files` has the sources' comments."""
    comments = comments_of(files)
    return {
        f"{GROUP}_{kind.plural}.yaml": _HEADER + _yaml(definition(kind, comments))
        for kind in kinds.KINDS
        if kind.api_version == kinds.REMORA
    }


class _Representer(SafeRepresenter):
    """Quotes what kubectl, which reads YAML 1.1, would take for true or false: the field `on`, the mode `Off`."""

    def ignore_aliases(self, data: Any) -> bool:
        """The definitions share parts; an alias for each would be no help to a reader."""
        return True

    def represent_str(self, data: str) -> Any:
        is_word = data.lower() in ("y", "n", "yes", "no", "on", "off")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if is_word else None)


_Representer.add_representer(str, _Representer.represent_str)


def _yaml(content: Any) -> str:
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.width = 140
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    writer.dump(content, text)
    return text.getvalue()


def main(descriptors: str, folder: str) -> None:
    """Write what a descriptor set leads to into a folder; what is there and not made is taken away."""
    made = definitions(FileDescriptorSet.FromString(Path(descriptors).read_bytes()))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob(f"{GROUP}_*.yaml"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (target / name).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
