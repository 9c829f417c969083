"""State of the world: how it asks, and how it is answered.

The first request with the nonce of a response answers it; one with an older nonce is ignored. CDS and LDS responses hold everything, EDS and
RDS only what changed. A changed list of names is answered although the version did not change.
"""

from functools import partial
from typing import Final

from control_plane.ads.request import Request
from control_plane.ads.subscription import Part, Subscription
from control_plane.translate.content import NO_NAMES, Content, Form, encoded, field
from control_plane.translate.snapshot import CLUSTER, LISTENER, ORDER

WHOLE: Final = frozenset((CLUSTER, LISTENER))
"""Types of which a response holds all resources."""
WILDCARD: Final = "*"
_NOT_FOUND: Final = b"\x08\x05"
"""google.rpc.Status.code."""


def first(request: Request) -> Subscription:
    """The first request for a type."""
    is_whole = request.type_url in WHOLE
    is_everything = is_whole and (not request.names or WILDCARD in request.names)
    return Subscription(request.type_url, is_everything, request.names, is_whole, is_due=is_whole)


def is_old(subscription: Subscription, request: Request) -> bool:
    """True if a request was made before the node had seen the last response: it means nothing any more."""
    return request.nonce != subscription.nonce


def ask(subscription: Subscription, request: Request) -> None:
    """A later request: it names all that is wanted. Once names were given, no names means nothing, and only `*` everything."""
    names, before = request.names, subscription.names
    if names == before:
        return
    was_everything = subscription.is_everything
    subscription.is_everything = subscription.is_whole and WILDCARD in names
    subscription.names = names
    if subscription.is_everything:
        subscription.is_due |= not was_everything
    else:
        subscription.is_due |= subscription.is_whole and not names <= (NO_NAMES if was_everything else before)
    subscription.narrow()


def encode(subscription: Subscription, wanted: Content, part: Part) -> bytes:
    """The DiscoveryResponse."""
    form = _FORMS[subscription.type_url]
    body = wanted.whole_body(form) if part.puts is None else wanted.body(form, part.puts)
    return b"".join(
        (
            field(1, subscription.version_sent.encode()),
            body,
            encoded(form, part.stays),
            _missing(subscription, wanted, part),
            field(4, subscription.type_url.encode()),
            field(5, subscription.nonce.encode()),
        )
    )


def _missing(subscription: Subscription, wanted: Content, part: Part) -> bytes:
    """Says of what is asked for by name, and is not there, that it is not (gRFC A88): proxyless clients ask so, and wait 15 s otherwise."""
    if subscription.is_everything or part.puts is not None:
        return b""
    missing = sorted(name for name in subscription.names if name not in wanted and name not in part.stays)
    return b"".join(
        field(7, field(1, field(1, name.encode())) + field(2, _NOT_FOUND + field(2, _why(subscription, name).encode())))
        for name in missing
    )


def _why(subscription: Subscription, name: str) -> str:
    if subscription.type_url != LISTENER:
        return f"nothing is called {name}"
    return f"no service is called {name}; with a port, it must be one that the service declares"


def _resource(head: bytes, name: str, data: bytes) -> bytes:
    return field(2, head + field(2, data))


_FORMS: Final[dict[str, Form]] = {url: partial(_resource, field(1, url.encode())) for url in ORDER}
