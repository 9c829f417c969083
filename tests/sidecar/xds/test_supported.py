"""What is supported works, what is not is refused by name: for every field of every message that a configuration can hold."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf import any_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from sidecar.xds.bootstrap import read
from sidecar.xds.supported import FIELDS, OPAQUE, ConfigError, refuse_unsupported, unpack
from tests.sidecar.xds.everything import document

WITHOUT_EFFECT: Final = {
    "what is called so is known by its type": {
        "envoy.config.core.v3.TypedExtensionConfig name",
        "envoy.config.core.v3.TransportSocket name",
        "envoy.config.listener.v3.Filter name",
        "envoy.config.listener.v3.ListenerFilter name",
        "envoy.config.bootstrap.v3.RuntimeLayer name",
        "envoy.config.route.v3.RetryPolicy.RetryHostPredicate typed_config",
    },
    "the sidecar has it without being asked": {
        "envoy.config.bootstrap.v3.Bootstrap bootstrap_extensions",
        "envoy.config.core.v3.ApiConfigSource set_node_on_first_message_only",
        "envoy.config.core.v3.Http2ProtocolOptions override_stream_error_on_invalid_http_message",
    },
    "there is one version of xDS": {
        "envoy.config.core.v3.ConfigSource resource_api_version",
        "envoy.config.core.v3.ApiConfigSource transport_api_version",
    },
    "there is one place where routes and endpoints come from": {
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds config_source",
        "envoy.config.cluster.v3.Cluster.EdsClusterConfig eds_config",
    },
    "nothing waits for a first answer of the control plane": {
        "envoy.config.core.v3.ConfigSource initial_fetch_timeout"
    },
    "names of statistics and runtime keys, which are Envoy's": {
        "envoy.config.listener.v3.Listener stat_prefix",
        "envoy.config.core.v3.RuntimeFractionalPercent runtime_key",
        "envoy.config.core.v3.RuntimeFeatureFlag runtime_key",
        "envoy.config.core.v3.RuntimeDouble runtime_key",
        "envoy.config.core.v3.RuntimePercent runtime_key",
        "envoy.config.core.v3.RuntimeUInt32 runtime_key",
    },
    "limits of RE2's programs, of which there are none": {
        "envoy.type.matcher.v3.RegexMatcher google_re2",
        "envoy.type.matcher.v3.RegexMatcher.GoogleRE2 max_program_size",
    },
    "a label": {
        "envoy.config.core.v3.EnvoyInternalAddress endpoint_id",
    },
    "only the default is supported, or does what being unset does": {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.UpgradeConfig enabled",
        "envoy.config.route.v3.RouteAction.UpgradeConfig enabled",
        "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash hash_function",
    },
}
"""Supported fields that change nothing, with the reason why that is right."""
ONLY_DEFAULTS: Final = {
    "envoy.config.core.v3.SocketAddress protocol",
    "envoy.config.cluster.v3.Cluster.RingHashLbConfig hash_function",
}
"""Numbers of which only 0 is supported, so that a message that sets them looks as one that does not."""


def message_of(name: str) -> Any:
    """An empty message of a type."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))()


def bootstrap(folder: Path) -> Any:
    """The sample as a message."""
    message = message_of("envoy.config.bootstrap.v3.Bootstrap")
    json_format.ParseDict(document(folder), message)
    return message


def variants(message: Message) -> Iterator[tuple[str, Message]]:
    """For every field that is set, however deep: its name, and the message without it."""
    if isinstance(message, any_pb2.Any):
        for name, inner in variants(unpack(message, "")):
            packed = any_pb2.Any()
            packed.Pack(inner)
            yield name, packed
        return
    if message.DESCRIPTOR.full_name in OPAQUE or message.DESCRIPTOR.full_name.startswith("google.protobuf."):
        return
    for field, value in message.ListFields():
        yield (
            f"{message.DESCRIPTOR.full_name} {field.name}",
            _changed(message, lambda copy, f=field: copy.ClearField(f.name)),
        )
        if field.message_type is not None:
            yield from _inside(message, field, value)


def _inside(message: Message, field: FieldDescriptor, value: Any) -> Iterator[tuple[str, Message]]:
    if isinstance(value, Message):
        for name, inner in variants(value):
            yield name, _changed(message, lambda copy, i=inner: getattr(copy, field.name).CopyFrom(i))
    elif hasattr(value, "items"):
        for key, item in value.items():
            for name, inner in variants(item):
                yield name, _changed(message, lambda copy, k=key, i=inner: getattr(copy, field.name)[k].CopyFrom(i))
    else:
        for number, item in enumerate(value):
            for name, inner in variants(item):
                yield name, _changed(message, lambda copy, n=number, i=inner: getattr(copy, field.name)[n].CopyFrom(i))


def _changed(message: Message, change: Any) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    change(copy)
    return copy


def outcome(message: Message) -> str:
    """What a bootstrap comes to: a configuration, or a refusal."""
    try:
        return repr(read(message))
    except ConfigError as error:
        return f"refused: {error}"


def test_the_sample_sets_every_supported_field_and_is_taken(tmp_path: Path) -> None:
    message = bootstrap(tmp_path)
    assert not outcome(message).startswith("refused")
    present = {name for name, _ in variants(message)}
    known = {f"{name} {field}" for name, fields in FIELDS.items() for field in fields.split()}
    assert known - present == ONLY_DEFAULTS


def test_every_supported_field_has_an_effect_or_a_reason_to_have_none(tmp_path: Path) -> None:
    message = bootstrap(tmp_path)
    whole = outcome(message)
    effective: dict[str, bool] = {}
    for name, without in variants(message):
        effective[name] = effective.get(name, False) or outcome(without) != whole
    reasoned = set().union(*WITHOUT_EFFECT.values())
    assert {name for name, has_effect in effective.items() if not has_effect} == reasoned


def set_something(message: Any, field: FieldDescriptor) -> None:
    """Give a field a value that is not its default."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        key: Any = "x" if field.message_type.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING else 1
        target = getattr(message, field.name)
        if value.message_type is not None:
            target[key].SetInParent()
        else:
            target[key] = _scalar(value)
    elif field.message_type is not None:
        target = getattr(message, field.name)
        target.add() if field.is_repeated else target.SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(field))
    else:
        setattr(message, field.name, _scalar(field))


def _scalar(field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return next((value.number for value in field.enum_type.values if value.number), 0)
    if field.type == FieldDescriptor.TYPE_STRING:
        return "x"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"x"
    return field.type == FieldDescriptor.TYPE_BOOL or 1


def unsupported() -> Iterator[tuple[str, str]]:
    for name, fields in FIELDS.items():
        descriptor: Descriptor = message_of(name).DESCRIPTOR
        for field in descriptor.fields:
            if field.name not in fields.split():
                yield name, field.name


@pytest.mark.parametrize("name", FIELDS)
def test_what_is_listed_exists(name: str) -> None:
    assert set(FIELDS[name].split()) <= set(message_of(name).DESCRIPTOR.fields_by_name)


def test_every_field_that_is_not_listed_is_refused_by_name() -> None:
    taken: list[str] = []
    cases = list(unsupported())
    for name, field in cases:
        message = message_of(name)
        set_something(message, message.DESCRIPTOR.fields_by_name[field])
        try:
            refuse_unsupported(message, "here")
            taken.append(f"{name} {field}")
        except ConfigError as error:
            assert str(error).startswith(f"here.{field}: this field is not supported"), error
            assert "(RMR0101)" in str(error)
    assert taken == []
    assert len(cases) > 400


def test_a_field_deep_inside_is_refused_with_its_place(tmp_path: Path) -> None:
    message = bootstrap(tmp_path)
    route = message.static_resources.clusters[1].load_assignment.endpoints[0].lb_endpoints[1]
    route.endpoint.health_check_config.port_value = 1
    with pytest.raises(ConfigError) as caught:
        refuse_unsupported(message)
    place = "static_resources.clusters[1].load_assignment.endpoints[0].lb_endpoints[1].endpoint.health_check_config"
    assert str(caught.value).startswith(f"{place}: this field is not supported")


def test_an_extension_that_is_not_known_is_refused_by_name() -> None:
    packed = any_pb2.Any(type_url="type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua")
    with pytest.raises(
        ConfigError, match=r'here: extension "envoy.extensions.filters.http.lua.v3.Lua" is not supported'
    ):
        unpack(packed, "here")


def test_bytes_that_are_not_the_message_are_refused() -> None:
    packed = any_pb2.Any(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster", value=b"\xff\xff")
    with pytest.raises(ConfigError, match=r"here: the bytes are no envoy.config.cluster.v3.Cluster"):
        unpack(packed, "here")
