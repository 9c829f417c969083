"""A client by chance against one stream: whatever it refuses and however requests and responses cross, it ends with the snapshot.

In both variants of the protocol; with delta it also comes back on a new stream now and then, and says what it has.

The client does as Envoy does: clusters and listeners by wildcard, endpoints for the clusters that it has, routes when it has a listener. It
takes a response whole or not at all. Requests and responses travel in queues, so either side may speak before it has heard the other.
"""

from collections import deque
from random import Random
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.ads import delta, sotw
from control_plane.ads import request as requests
from control_plane.ads.core import NodeStream
from control_plane.translate import snapshot as snapshots
from control_plane.translate.content import version
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


class DeltaClient:
    """The same in delta: it says what it wants more or no longer, and hears what changed."""

    def __init__(self) -> None:
        self.held: dict[str, dict[str, bytes]] = {url: {} for url in ORDER}
        self.said: deque[Any] = deque()
        self.warming: set[str] = set()
        self.has_refused = False
        self._asked: dict[str, frozenset[str]] = {}
        self._ask(CLUSTER, frozenset())

    def hear(self, response: Any, *, refuses: bool) -> None:
        url = response.type_url
        items = {item.name: item.resource.value for item in response.resources}
        assert not items.keys() & set(response.removed_resources)
        refuses &= bool(items)  # in a removal there is nothing to dislike
        if refuses or any(data.endswith(b"=bad") for data in items.values()):
            self.has_refused = True
            self._say(url, nonce=response.nonce, refuses=True)
            return
        if url == CLUSTER:
            self.warming |= {name for name, data in items.items() if self.held[CLUSTER].get(name) != data}
            self.warming -= set(response.removed_resources)
        elif url == ENDPOINTS:
            self.warming -= items.keys()
        self.held[url].update(
            {name: data for name, data in items.items() if url in (CLUSTER, LISTENER) or name in self._asked[url]}
        )
        for name in response.removed_resources:
            self.held[url].pop(name, None)
        self._say(url, nonce=response.nonce)
        if url == CLUSTER:
            self._follow_clusters()
        elif url == LISTENER and self.held[url]:
            self._ask(ROUTES, frozenset(("out",)))

    def come_back(self) -> None:
        """On a new stream: nothing that was on the way arrives, and what is held is said."""
        self.said.clear()
        asked, self._asked = self._asked, {}
        for url in asked:
            self._ask(url, asked[url])

    def _follow_clusters(self) -> None:
        clusters = frozenset(self.held[CLUSTER])
        self.held[ENDPOINTS] = {name: data for name, data in self.held[ENDPOINTS].items() if name in clusters}
        self._ask(ENDPOINTS, clusters)
        if LISTENER not in self._asked:
            self._ask(LISTENER, frozenset())

    def _ask(self, url: str, names: frozenset[str]) -> None:
        before = self._asked.get(url)
        if before is None and (names or url in (CLUSTER, LISTENER)):
            self._asked[url] = names
            self._say(url, subscribe=names, is_first=True)
        elif before is not None and before != names:
            self._asked[url] = names
            self._say(url, subscribe=names - before, unsubscribe=before - names)

    def _say(self, url: str, *, subscribe: Any = (), unsubscribe: Any = (), nonce: str = "", **how: bool) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=url,
            resource_names_subscribe=sorted(subscribe),
            resource_names_unsubscribe=sorted(unsubscribe),
            response_nonce=nonce,
        )
        if how.get("is_first"):
            # What is warming is not in use: Envoy asks for its endpoints anew.
            known = {
                name: data for name, data in self.held[url].items() if url != ENDPOINTS or name not in self.warming
            }
            request.initial_resource_versions.update({name: version(data) for name, data in known.items()})
        if how.get("refuses"):
            request.error_detail.message = "refused"
        self.said.append(request)


class Wire:
    """The two, and what is on the way between them."""

    def __init__(self, mood: str, chance: Random, *, is_delta: bool = False) -> None:
        self.stream = NodeStream(NODE, delta if is_delta else sotw)
        self.client: Client | DeltaClient = DeltaClient() if is_delta else Client()
        self._is_delta = is_delta
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
            kind: Any = discovery_pb2.DeltaDiscoveryResponse if self._is_delta else discovery_pb2.DiscoveryResponse
            self.sent.append(kind.FromString(response.data))
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
            data = self.client.said.popleft().SerializeToString()
            self.stream.on_request(requests.read_delta(data) if self._is_delta else requests.read(data), 0.0)
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

    def reconnect(self) -> None:
        """The stream breaks, and the client comes back on a new one."""
        assert isinstance(self.client, DeltaClient)
        self.sent.clear()
        self.stream = NodeStream(NODE, delta)
        self.stream.set_snapshot(self._snapshot)
        self.client.come_back()

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
    play(Wire(mood, Random(seed)), steps, seed)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(MOODS),
    st.lists(
        st.sampled_from(["change", "ask", "ask", "answer", "answer", "answer", "talk", "reconnect"]),
        min_size=8,
        max_size=40,
    ),
    st.integers(0, 2**32),
)
def test_a_delta_client_ends_with_the_snapshot(mood: str, steps: list[str], seed: int) -> None:
    play(Wire(mood, Random(seed), is_delta=True), steps, seed)


def play(wire: Wire, steps: list[str], seed: int) -> None:
    wire.have(dict.fromkeys(CLUSTERS, ("0", "0")), "0", "a")
    if seed % 2:
        wire.talk()
    for step in steps:
        getattr(wire, step)()
    wire.end()
