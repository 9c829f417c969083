"""Envoy's active health checks to the proxy's configuration."""

from typing import Any, Final

from envoy.config.core.v3 import base_pb2
from envoy.type.v3 import http_pb2

from sidecar.policy.checking import Checking
from sidecar.proxy.config import CheckConfig, CheckKind, Codec
from sidecar.xds.supported import ConfigError
from sidecar.xds.values import seconds, seconds_or

_NEEDED: Final = ("timeout", "interval", "unhealthy_threshold", "healthy_threshold")
_OK: Final = ((200, 201),)


def health_check(message: Any, cluster_codec: Codec, path: str) -> CheckConfig:
    """core.v3.HealthCheck."""
    for name in _NEEDED:
        if not message.HasField(name):
            raise ConfigError(f"{path}.{name}", "is needed (RMR0141)")
    for name in ("timeout", "interval"):
        if seconds(getattr(message, name)) <= 0:
            raise ConfigError(f"{path}.{name}", "above 0 s is needed (RMR0141)")
    interval = seconds(message.interval)
    unhealthy = seconds_or(message, "unhealthy_interval", interval)
    no_traffic = seconds_or(message, "no_traffic_interval", 60.0)
    timing = Checking(
        timeout_s=seconds(message.timeout),
        interval_s=interval,
        unhealthy_threshold=max(1, message.unhealthy_threshold.value),
        healthy_threshold=max(1, message.healthy_threshold.value),
        unhealthy_interval_s=unhealthy,
        unhealthy_edge_interval_s=seconds_or(message, "unhealthy_edge_interval", unhealthy),
        healthy_edge_interval_s=seconds_or(message, "healthy_edge_interval", interval),
        no_traffic_interval_s=no_traffic,
        no_traffic_healthy_interval_s=seconds_or(message, "no_traffic_healthy_interval", no_traffic),
        initial_jitter_s=seconds(message.initial_jitter),
        jitter_s=seconds(message.interval_jitter),
        jitter_percent=float(message.interval_jitter_percent),
    )
    match message.WhichOneof("health_checker"):
        case "grpc_health_check":
            if cluster_codec is not Codec.HTTP2:
                raise ConfigError(f"{path}.grpc_health_check", "the cluster must speak HTTP/2 (RMR0141)")
            check = message.grpc_health_check
            return CheckConfig(CheckKind.GRPC, timing, host=check.authority, service=check.service_name)
        case "http_health_check":
            return _http(message.http_health_check, timing, f"{path}.http_health_check")
        case "tcp_health_check":
            check, place = message.tcp_health_check, f"{path}.tcp_health_check"
            receive = tuple(_payload(item, f"{place}.receive[{number}]") for number, item in enumerate(check.receive))
            send = _payload(check.send, f"{place}.send") if check.HasField("send") else b""
            return CheckConfig(CheckKind.TCP, timing, send=send, receive=receive)
    raise ConfigError(path, "grpc_health_check, http_health_check or tcp_health_check is needed (RMR0141)")


def _http(check: Any, timing: Checking, path: str) -> CheckConfig:
    if not check.path.startswith("/"):
        raise ConfigError(f"{path}.path", f'"{check.path}" is no path; it begins with / (RMR0141)')
    codecs = {http_pb2.HTTP1: Codec.HTTP1, http_pb2.HTTP2: Codec.HTTP2}
    if check.codec_client_type not in codecs:
        raise ConfigError(f"{path}.codec_client_type", "HTTP1 and HTTP2 are supported (RMR0141)")
    method = base_pb2.RequestMethod.Name(check.method) if check.method else "GET"
    return CheckConfig(
        CheckKind.HTTP,
        timing,
        host=check.host,
        path=check.path,
        method=method,
        codec=codecs[check.codec_client_type],
        expected=tuple((item.start, item.end) for item in check.expected_statuses) or _OK,
        retriable=tuple((item.start, item.end) for item in check.retriable_statuses),
    )


def _payload(message: Any, path: str) -> bytes:
    """core.v3.HealthCheck.Payload."""
    if message.WhichOneof("payload") == "binary":
        return bytes(message.binary)
    try:
        return bytes.fromhex(message.text)
    except ValueError:
        raise ConfigError(f"{path}.text", f'"{message.text}" is no text of hexadecimal digits (RMR0141)') from None
