"""From a call to the descriptors that rate limits go by (Envoy: route.v3.RateLimit)."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from sidecar.proxy.config import LimitAction, LimitActions, Route, Said
from sidecar.proxy.route import header_holds

if TYPE_CHECKING:
    from sidecar.proxy.call import Call

Descriptor = tuple[tuple[bytes, bytes], ...]
"""Entries of key and value, in order."""

FORWARDED_FOR: Final = b"x-forwarded-for"
_NO_VALUES: Final[dict[bytes, list[bytes]]] = {}


def names_read(actions: Iterable[LimitActions]) -> frozenset[bytes]:
    """The headers that some actions read."""
    found: set[bytes] = set()
    for action in (action for item in actions for action in item.actions):
        if action.said is Said.REMOTE_ADDRESS:
            found.add(FORWARDED_FOR)
        if action.header:
            found.add(action.header)
        found.update(match.name for match in action.matches)
    return frozenset(found)


class DescriptorMaker:
    """Makes one descriptor of a call, or none."""

    def __init__(self, actions: tuple[LimitAction, ...], route: Route | None) -> None:
        self._actions = actions
        self._route = route

    def make(self, call: "Call") -> Descriptor | None:
        """The descriptor; None if an action that is not optional finds nothing (then there is none, as in Envoy)."""
        return self.of(call.plan.values or _NO_VALUES, call.down.remote_host)

    def of(self, values: dict[bytes, list[bytes]], remote_host: str) -> Descriptor | None:
        """The same for a call with these headers, from a client with this address."""
        entries: list[tuple[bytes, bytes]] = []
        for action in self._actions:
            if action.said is Said.HEADER:
                given = values.get(action.header)
                if given is None and action.is_optional:
                    continue
                if given is None and not action.is_empty_if_missing:
                    return None
                value = b",".join(given or ())
            elif action.said is Said.HEADER_MATCH:
                if all(header_holds(match, values) for match in action.matches) is not action.expects_match:
                    return None
                value = action.value.encode()
            elif action.said is Said.REMOTE_ADDRESS:
                value = _remote_address(remote_host, values.get(FORWARDED_FOR))
            elif action.said is Said.DESTINATION_CLUSTER:
                if self._route is None or len(self._route.clusters) != 1:
                    return None
                value = self._route.clusters[0][0].encode()
            else:
                value = action.value.encode()
            entries.append((action.key.encode(), value))
        return tuple(entries) or None


def remote_address(call: "Call", forwarded: list[bytes] | None) -> bytes:
    """The client's address: as the last proxy before us said, else its socket's."""
    return _remote_address(call.down.remote_host, forwarded)


def _remote_address(remote_host: str, forwarded: list[bytes] | None) -> bytes:
    if forwarded:
        said = forwarded[-1].rpartition(b",")[2].strip()
        try:
            return str(ip_address(said.decode("latin-1"))).encode()
        except ValueError:
            pass
    return remote_host.encode()
