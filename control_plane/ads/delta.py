"""Delta: how it asks, and how it is answered.

A request adds and takes back names, whatever its nonce; with the nonce of a response it answers that. Responses hold what changed, each
resource with a version of its own (a hash of its bytes, so that all replicas give the same), and the names of which there is nothing any
more. On its first request for a type a node says which versions it has from an earlier stream; those are not sent again.
"""

from functools import partial
from typing import Final

from control_plane.ads.request import DeltaRequest, shared
from control_plane.ads.sotw import WHOLE, WILDCARD
from control_plane.ads.subscription import Part, Subscription
from control_plane.translate.content import NO_NAMES, Content, Form, field, fields, version
from control_plane.translate.snapshot import ORDER

_STAR: Final = frozenset((WILDCARD,))


def first(request: DeltaRequest) -> Subscription:
    """The first request for a type."""
    is_everything = WILDCARD in request.subscribe or (request.type_url in WHOLE and not request.subscribe)
    names = shared(request.subscribe - _STAR)
    return Subscription(
        request.type_url,
        is_everything,
        names,
        removes=True,
        is_due=is_everything and not request.initial,
        initial=request.initial or None,
        again=names - request.initial.keys() if request.initial else names,
    )


def is_old(subscription: Subscription, request: DeltaRequest) -> bool:
    """False: what a request says of names counts in any case."""
    return False


def ask(subscription: Subscription, request: DeltaRequest) -> None:
    """A later request."""
    taken_back, added = request.unsubscribe, request.subscribe - _STAR
    if not (taken_back or request.subscribe):
        return
    is_new_star = WILDCARD in request.subscribe and not subscription.is_everything
    subscription.is_everything = is_new_star or (subscription.is_everything and WILDCARD not in taken_back)
    subscription.is_due |= is_new_star
    subscription.names = shared((subscription.names - taken_back) | added)
    # A name that is taken back while everything is asked for is answered: the node cannot know whether it keeps it.
    subscription.again |= added | (taken_back - _STAR if subscription.is_everything else NO_NAMES)
    subscription.narrow()


def encode(subscription: Subscription, wanted: Content, part: Part) -> bytes:
    """The DeltaDiscoveryResponse."""
    return b"".join(
        (
            field(1, subscription.version_sent.encode()),
            wanted.body(_FORMS[subscription.type_url], part.puts or NO_NAMES),
            field(4, subscription.type_url.encode()),
            field(5, subscription.nonce.encode()),
            fields(6, (name.encode() for name in sorted(part.gone))),
        )
    )


def _resource(url: bytes, name: str, data: bytes) -> bytes:
    packed = field(1, url) + field(2, data)
    return field(2, b"".join((field(1, version(data).encode()), field(2, packed), field(3, name.encode()))))


_FORMS: Final[dict[str, Form]] = {url: partial(_resource, url.encode()) for url in ORDER}
