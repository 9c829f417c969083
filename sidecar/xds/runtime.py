"""Envoy's runtime keys (`layered_runtime`) to the limits of the process. A key that is not known is refused, as a field would be."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from sidecar.proxy.config import Limits
from sidecar.xds.supported import ConfigError

_NUMBERS: Final = {
    "remora.max_connections": "max_connections",
    "remora.max_buffered_bytes": "max_buffered_bytes",
    "remora.max_unread_bytes": "max_unread_bytes",
    "remora.max_control_frames_per_second": "max_control_frames_per_s",
    "remora.max_header_block_bytes": "max_header_block_bytes",
    "remora.max_continuation_frames": "max_continuation_frames",
    "remora.detect_timeout_seconds": "detect_timeout_s",
    "remora.tls_handshake_timeout_seconds": "handshake_timeout_s",
    "overload.premature_reset_total_stream_count": "premature_resets",
    "overload.premature_reset_min_stream_lifetime_seconds": "premature_reset_s",
}
_LISTENER: Final = "envoy.resource_limits.listener."
_CONNECTIONS: Final = ".connection_limit"


def limits(message: Any, path: str = "layered_runtime") -> Limits:
    """bootstrap.v3.LayeredRuntime: later layers go before earlier ones."""
    found: dict[str, int] = {}
    for number, layer in enumerate(message.layers):
        place = f"{path}.layers[{number}]"
        if layer.WhichOneof("layer_specifier") != "static_layer":
            raise ConfigError(place, "only static_layer is supported (RMR0128)")
        for key, value in _leaves(layer.static_layer, ""):
            found[key] = _count(value, f"{place}.static_layer[{key}]")
    listeners: dict[str, int] = {}
    known: dict[str, Any] = {}
    for key, count in found.items():
        if key in _NUMBERS:
            known[_NUMBERS[key]] = count
        elif key.startswith(_LISTENER) and key.endswith(_CONNECTIONS):
            listeners[key.removeprefix(_LISTENER).removesuffix(_CONNECTIONS)] = count
        else:
            keys = ", ".join([*sorted(_NUMBERS), f"{_LISTENER}NAME{_CONNECTIONS}"])
            raise ConfigError(path, f'the key "{key}" is not supported; supported: {keys} (RMR0128)')
    limits = Limits(listener_connections=tuple(sorted(listeners.items())))
    return replace(limits, **known)


def _leaves(struct: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key."""
    for key, value in struct.fields.items():
        if value.WhichOneof("kind") == "struct_value":
            yield from _leaves(value.struct_value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _count(value: Any, path: str) -> int:
    number = value.number_value
    if value.WhichOneof("kind") != "number_value" or number != int(number) or number < 1:
        raise ConfigError(path, "a whole number above 0 is needed (RMR0128)")
    return int(number)
