"""A client by chance against one stream: whatever it refuses and however requests and responses cross, it ends with the snapshot.

The client does as Envoy does: clusters and listeners by wildcard, endpoints for the clusters that it has, routes when it has a listener. It
takes a response whole or not at all. Requests and responses travel in queues, so either side may speak before it has heard the other.
"""

from collections import deque
from random import Random
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.ads import request as requests
from control_plane.ads import sotw
from control_plane.ads.core import NodeStream
from control_plane.translate import snapshot as snapshots
from control_plane.translate.snapshot import CLUSTER, ENDPOINTS, LISTENER, ORDER, ROUTES, Snapshot
from tests.control_plane.ads.script import NODE

CLUSTERS = ("a", "b", "c")
MOODS = ("picky", "moody", "content")
"""The client refuses what is bad; anything now and then; nothing."""

MAX_ROUNDS = 1000


class Client:
    """What a data plane holds, and what it says."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, bytes]] = {url: {} for url in ORDER}
        self.said: deque[Any] = deque()
        self.warming: set[str] = set()
        """Clusters that changed, and wait for their endpoints to be sent (again)."""
        self.has_refused = False
        self._nonces: dict[str, str] = {}
        self._asked: dict[str, frozenset[str]] = {}
        self._say(CLUSTER)

    def hear(self, response: Any, *, refuses: bool) -> None:
        url = response.type_url
        self._nonces[url] = response.nonce
        # A resource's bytes are `name=content`.
        items = {item.value.partition(b"=")[0].decode(): item.value for item in response.resources}
        if refuses or any(data.endswith(b"=bad") for data in items.values()):
            self.has_refused = True
            self._say(url, refuses=True)
            return
        if url == CLUSTER:
            self.warming |= {name for name, data in items.items() if self.held[CLUSTER].get(name) != data}
            self.warming &= items.keys()
        elif url == ENDPOINTS:
            self.warming -= items.keys()
        if url in (CLUSTER, LISTENER):
            self.held[url] = items
        else:
            asked = self._asked.get(url, frozenset())
            self.held[url].update({name: data for name, data in items.items() if name in asked})
        self._say(url)
        if url == CLUSTER:
            self._follow_clusters()
        elif url == LISTENER and items:
            self._ask(ROUTES, frozenset(("out",)))

    def _follow_clusters(self) -> None:
        clusters = frozenset(self.held[CLUSTER])
        self.held[ENDPOINTS] = {name: data for name, data in self.held[ENDPOINTS].items() if name in clusters}
        self._ask(ENDPOINTS, clusters)
        if LISTENER not in self._asked:
            self._asked[LISTENER] = frozenset()
            self._say(LISTENER)

    def _ask(self, url: str, names: frozenset[str]) -> None:
        if self._asked.get(url) != names:
            self._asked[url] = names
            self._say(url)

    def _say(self, url: str, *, refuses: bool = False) -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=url, resource_names=sorted(self._asked.get(url, ())), response_nonce=self._nonces.get(url, "")
        )
        if refuses:
            request.error_detail.message = "refused"
        self.said.append(request)


def snapshot(revision: int, clusters: dict[str, tuple[str, str]], listener: str, route: str) -> Snapshot:
    """`clusters` is name -> (content, content of its endpoints)."""
    types = {
        CLUSTER: {name: f"{name}={content}".encode() for name, (content, _) in clusters.items()},
        ENDPOINTS: {name: f"{name}={content}".encode() for name, (_, content) in clusters.items()},
        LISTENER: {"in": f"in={listener}".encode()},
        ROUTES: {"out": f"out={route}".encode()},
    }
    return snapshots.of(str(revision), types)


class Wire:
    """The two, and what is on the way between them."""

    def __init__(self, mood: str, chance: Random) -> None:
        self.stream = NodeStream(NODE, sotw)
        self.client = Client()
        self.sent: deque[Any] = deque()
        self.revision = 0
        self.clusters: dict[str, tuple[str, str]] = {}
        self._snapshot = snapshot(0, {}, "0", "a")
        self._mood = mood
        self._chance = chance

    def have(self, clusters: dict[str, tuple[str, str]], listener: str, route: str) -> None:
        self.revision += 1
        self.clusters = clusters
        self._snapshot = snapshot(self.revision, clusters, listener, route)
        self.stream.set_snapshot(self._snapshot)
        self._send()

    def _send(self) -> None:
        while (response := self.stream.next_response(0.0)) is not None:
            self.sent.append(discovery_pb2.DiscoveryResponse.FromString(response.data))
        types = [response.type_url for response in self.sent]
        assert len(types) == len(set(types)), "one response of a type at a time"

    def change(self) -> None:
        """Some of the clusters, each changed or not; in a picky mood one of them may be bad."""
        names = self._chance.choice(["abc", "abc", "ab", "bc", "ac", "a", "b", "c"])
        contents = ["1", "2", "3", "bad"] if self._mood == "picky" else ["1", "2", "3"]
        clusters = {name: (self._chance.choice("12"), self._chance.choice(contents)) for name in names}
        if self._mood == "picky" and self._chance.random() < 0.2:
            clusters[names[0]] = ("bad", "1")
        self.have(clusters, self._chance.choice("12"), self._chance.choice(names))

    def ask(self) -> None:
        """The control plane hears the next request."""
        if self.client.said:
            self.stream.on_request(requests.read(self.client.said.popleft().SerializeToString()), 0.0)
            self._send()

    def answer(self) -> None:
        """The client hears the next response."""
        if not self.sent:
            return
        self.client.hear(self.sent.popleft(), refuses=self._mood == "moody" and self._chance.random() < 0.3)
        if self.client.held[ROUTES] and not self.client.has_refused:
            # Make before break: the cluster that the route leads to is there, with its endpoints.
            target = self.client.held[ROUTES]["out"].decode().removeprefix("out=")
            assert target in self.client.held[CLUSTER]
            assert target in self.client.held[ENDPOINTS]

    def talk(self) -> None:
        """Both say all that they have to say."""
        for _ in range(MAX_ROUNDS):
            if not self.client.said and not self.sent:
                return
            self.ask() if self.client.said else self.answer()
        raise AssertionError("they talk for ever")

    def end(self) -> None:
        """What is bad is mended, the client refuses nothing any more, and all is said."""
        if self._mood == "moody":
            # What was refused although it is good is taken for bad until it changes.
            self.have({"a": ("4", "4"), "d": ("4", "4")}, "4", "d")
        else:
            mended = {
                name: tuple("4" if part == "bad" else part for part in both) for name, both in self.clusters.items()
            }
            route = self._snapshot.types[ROUTES]["out"].decode().removeprefix("out=")
            self.have({name: (both[0], both[1]) for name, both in mended.items()}, "4", route)
        self._mood = "content"
        self.talk()
        assert self.client.held == self._snapshot.types
        assert not self.client.warming
        assert self.stream.programmed == self.revision


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(MOODS),
    st.lists(st.sampled_from(["change", "ask", "ask", "answer", "answer", "answer", "talk"]), min_size=8, max_size=40),
    st.integers(0, 2**32),
)
def test_a_client_ends_with_the_snapshot(mood: str, steps: list[str], seed: int) -> None:
    wire = Wire(mood, Random(seed))
    wire.have(dict.fromkeys(CLUSTERS, ("0", "0")), "0", "a")
    if seed % 2:
        wire.talk()
    for step in steps:
        getattr(wire, step)()
    wire.end()
