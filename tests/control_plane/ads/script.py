"""One ADS stream as a text: what the control plane has, what the node says, and what is sent to it then.

have 1: clusters a=1 b=1; endpoints a=1 b=1     the snapshot at revision 1; `a=1` is resource a with content 1
node acks clusters [NAME…]
node nacks clusters because TEXT
node acks clusters nonce 1                      with another nonce than the last
shows                                           what the control plane knows of the node
5 ms pass

State of the world:
node asks clusters [NAME…]                      a request with the last nonce of the type, or the first of a type

Delta:
node asks clusters [NAME…]                      adds names; `has a=1` at the end: on an earlier stream it got that
node drops clusters NAME…                       takes names back
"""

import re
from typing import Final

from envoy.service.discovery.v3 import discovery_pb2

from control_plane.ads import delta, sotw
from control_plane.ads import request as requests
from control_plane.ads.core import NodeStream, Variant
from control_plane.ads.request import BadRequest
from control_plane.translate import snapshot as snapshots
from control_plane.translate.content import version
from control_plane.translate.node import Node
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, Snapshot

WORDS: Final = {"clusters": CLUSTER, "endpoints": ENDPOINTS, "listeners": LISTENER, "routes": ROUTES}
_NAMED: Final = {url: word for word, url in WORDS.items()}
NODE: Final = Node(id="n", service="cart", namespace="shop", version="", engine="envoy")


class Player:
    """Plays a script; `play` gives it back with what happens under each line."""

    def __init__(self, variant: Variant = sotw) -> None:
        self._stream = NodeStream(NODE, variant)
        self._is_delta = variant is delta
        self._now = 0.0
        self._lines: list[str] = []
        self._programmed = 0

    def play(self, script: str) -> str:
        """What happens, under each line of the script that makes something happen."""
        for line in filter(None, map(str.strip, script.splitlines())):
            self._lines.append(line)
            if line.startswith("#"):
                continue
            self._do(line)
            if self._stream.programmed != self._programmed:
                self._programmed = self._stream.programmed
                self._lines.append(f"    programmed {self._programmed}")
        return "\n".join(self._lines)

    def _do(self, line: str) -> None:
        if have := re.fullmatch(r"have (\d+):(.*)", line):
            self._stream.set_snapshot(snapshot(int(have[1]), have[2]))
        elif said := re.fullmatch(
            r"node (asks|drops|acks|nacks) (\S+)((?: (?!nonce |because )\S+)*)(?: nonce (\d+))?(?: because (.*))?", line
        ):
            try:
                if self._is_delta:
                    self._stream.on_request(requests.read_delta(self._delta_request(*said.groups())), self._now)
                else:
                    self._stream.on_request(requests.read(self._request(*said.groups())), self._now)
            except BadRequest as error:
                self._lines.append(f"    the stream ends: {error}")
                return
        elif passed := re.fullmatch(r"(\d+) ms pass", line):
            self._now += int(passed[1]) / 1000
        elif line == "shows":
            self._show()
            return
        else:
            raise AssertionError(f"no such line: {line}")
        while (response := self._stream.next_response(self._now)) is not None:
            self._lines.append(f"    {(_delta_written if self._is_delta else _written)(response.data)}")

    def _request(self, verb: str, word: str, names: str, nonce: str | None, reason: str | None) -> bytes:
        url = WORDS.get(word, word)
        subscription = self._stream.subscriptions.get(url)
        given = names.split()
        if subscription is not None and not given and subscription.asked is not None:
            given = sorted(subscription.names)  # as clients do: every request names all that is wanted
        request = discovery_pb2.DiscoveryRequest(type_url=url, resource_names=[] if given == ["nothing"] else given)
        if subscription is not None:
            request.response_nonce = nonce if nonce is not None else subscription.nonce
            request.version_info = subscription.version_acked
        if verb == "nacks":
            request.error_detail.message = reason or "refused"
        return bytes(request.SerializeToString())

    def _delta_request(self, verb: str, word: str, names: str, nonce: str | None, reason: str | None) -> bytes:
        url = WORDS.get(word, word)
        subscription = self._stream.subscriptions.get(url)
        given, _, has = names.strip().partition("has ")
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=url)
        (request.resource_names_unsubscribe if verb == "drops" else request.resource_names_subscribe).extend(
            given.split()
        )
        for item in has.split():
            request.initial_resource_versions[item.partition("=")[0]] = version(item.encode())
        if subscription is not None and verb in ("acks", "nacks"):
            request.response_nonce = nonce if nonce is not None else subscription.nonce
        if verb == "nacks":
            request.error_detail.message = reason or "refused"
        return bytes(request.SerializeToString())

    def _show(self) -> None:
        for url in ORDER:
            item = self._stream.subscriptions.get(url)
            if item is not None:
                words = [f"sent {item.version_sent or '-'}", f"acked {item.version_acked or '-'}"]
                if item.version_nacked:
                    words.append(f"nacked {item.version_nacked} because {item.nack_reason}")
                words.append(f"after {item.lag_ms:g} ms")
                self._lines.append(f"    {_NAMED[url]}: {', '.join(words)}")


def snapshot(revision: int, text: str) -> Snapshot:
    """From `clusters a=1 b=1; endpoints a=1`."""
    types: dict[str, dict[str, bytes]] = {url: {} for url in ORDER}
    for part in filter(None, map(str.strip, text.split(";"))):
        word, *items = part.split()
        types[WORDS[word]] = {item.partition("=")[0]: item.encode() for item in items}
    return snapshots.of(str(revision), types)


def _written(data: bytes) -> str:
    response = discovery_pb2.DiscoveryResponse.FromString(data)
    items = " ".join(item.value.decode() for item in response.resources) or "nothing"
    assert all(item.type_url == response.type_url for item in response.resources)
    return f"send {_NAMED[response.type_url]} of {response.version_info}, nonce {response.nonce}: {items}"


def _delta_written(data: bytes) -> str:
    response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
    items = [item.resource.value.decode() for item in response.resources]
    items += [f"{name} is gone" for name in response.removed_resources]
    for item in response.resources:
        assert item.resource.type_url == response.type_url
        assert item.resource.value.startswith(item.name.encode() + b"=")
        assert item.version == version(item.resource.value)
    head = f"send {_NAMED[response.type_url]} of {response.system_version_info}, nonce {response.nonce}"
    return f"{head}: {', '.join(items) if response.removed_resources else ' '.join(items) or 'nothing'}"
