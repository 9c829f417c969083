"""HOST:PORT and durations as users write them."""

import re
from typing import Final

MAX_SERVERS: Final = 16
LONGEST_S: Final = 1000 * 3600.0
SHORTEST_LEASE_S: Final = 5.0
LONGEST_LEASE_S: Final = 3600.0
"""As `RegisterRequest.ttl` says."""
_DURATION: Final = re.compile(r"^([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?$", re.ASCII)
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class UsageError(Exception):
    """What the user gave cannot be used; the text says why."""


def host_port(text: str, option: str) -> tuple[str, int]:
    """Split HOST:PORT. Raises UsageError."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f'{option}: "{text}" is not HOST:PORT, such as 127.0.0.1:15010')
    return host, int(port)


def servers(text: str, option: str) -> tuple[tuple[str, int], ...]:
    """Split HOST:PORT[,HOST:PORT…]: replicas of one control plane, any of which will do. Raises UsageError."""
    found = tuple(host_port(part.strip(), option) for part in text.split(","))
    if len(set(found)) != len(found):
        raise UsageError(f"{option}: one address stands twice in {text}")
    if len(found) > MAX_SERVERS:
        raise UsageError(f"{option}: {len(found)} addresses; at most {MAX_SERVERS} are taken")
    return found


def seconds(text: str, option: str) -> float:
    """A duration such as 30s, 500ms, 2m; a bare number is seconds. Raises UsageError."""
    match = _DURATION.match(text)
    if match is None:
        raise UsageError(f'{option}: "{text}" is no duration, such as 30s, 500ms or 2m')
    found = float(match[1]) * _UNIT_S[match[2] or "s"]
    if found > LONGEST_S:
        raise UsageError(f'{option}: "{text}" is too long; at most 1000h')
    return found


def lease_seconds(text: str, option: str) -> float:
    """How long a lease lasts, as the control plane grants it. Raises UsageError."""
    found = seconds(text, option)
    if not SHORTEST_LEASE_S <= found <= LONGEST_LEASE_S:
        raise UsageError(f'{option}: "{text}" is no lease; from 5s to 1h')
    return found


def locality(text: str, option: str) -> tuple[str, str, str]:
    """(region, zone, sub-zone) of REGION[/ZONE[/SUBZONE]], empty where nothing is said. Raises UsageError."""
    if not text:
        return "", "", ""
    parts = text.split("/")
    if not all(parts) or len(parts) > 3 or max(map(len, parts)) > 63:
        raise UsageError(f'{option}: "{text}" is no locality, such as eu, eu/west or eu/west/rack-1')
    region, zone, sub_zone = [*parts, "", ""][:3]
    return region, zone, sub_zone


def service_name(text: str) -> tuple[str, str]:
    """(name, namespace) of NAME or NAME.NAMESPACE. Raises UsageError."""
    name, dot, namespace = text.partition(".")
    namespace = namespace if dot else "default"
    for part in (name, namespace):
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", part):
            raise UsageError(f'service "{text}" is not NAME or NAME.NAMESPACE: lower-case letters, digits and - only')
    return name, namespace
