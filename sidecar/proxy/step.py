"""The seam between a call and the HTTP filters: a filter in force, and its part in one call's way.

A filter is asked once per distinct header block (see `decision`) which step it has in the way of such calls: what depends on nothing
else is decided there, and costs a call nothing. What must be decided per call is in `Step.enter`.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from sidecar.proxy.access import Caller, Claims
from sidecar.proxy.config import Route, VirtualHost
from sidecar.proxy.route import Request

if TYPE_CHECKING:
    from sidecar.proxy.call import Call


class Does(Enum):
    """What a step would do with a call."""

    PASS = "passes"
    HOLD = "holds"
    """It goes on after a while."""
    REFUSE = "refuses"
    WOULD_REFUSE = "would refuse"
    """On trial: it is counted, and passes."""
    CHANCE = "by chance"


@dataclass(frozen=True)
class Asked:
    """A call that is asked about and not made."""

    values: dict[bytes, list[bytes]]
    """Its headers, as in `Plan.values`."""
    caller: Caller
    now: float
    claims: Claims = field(default_factory=dict)
    """What steps find out about the caller, as in `Call.claims`."""


@dataclass(frozen=True)
class Verdict:
    """What a step would do with a call, and why."""

    what: str
    """The kind of filter."""
    does: Does
    why: str


@mypyc_attr(allow_interpreted_subclasses=True)
class Step:
    """A filter's part in the way of calls; shared by all calls of a decision."""

    watches_end: bool
    """True if `leave` is to be called."""
    edits_answer: bool
    """True if `edit_answer` is to be called."""

    def __init__(self) -> None:
        self.watches_end = False
        self.edits_answer = False

    def enter(self, call: "Call") -> bool:
        """Let the call go on (True); or answer it, or hold it until `Call.resume` (False)."""
        return True

    def leave(self, call: "Call", status: int) -> None:
        """A call that entered is over, with this gRPC status; held or not."""

    def edit_answer(self, call: "Call", block: bytes, http_status: int, grpc_status: int) -> bytes | None:
        """The head of an answer as it goes on; None if the call has been answered otherwise. The gRPC status is -1 if it is yet to come."""
        return block

    def foresee(self, asked: Asked) -> Verdict:
        """What `enter` would do with a call, as things are now; nothing is counted and no dice are thrown."""
        return Verdict("filter", Does.PASS, "")


@mypyc_attr(allow_interpreted_subclasses=True)
class Filter:
    """One HTTP filter in force, in one place: on a filter chain, a virtual host or a route."""

    header_names: frozenset[bytes]
    """Headers that `step_for` reads, lower case: requests that agree in these, in what routes read and in method, path and authority
    have the same step."""
    value_names: frozenset[bytes]
    """Headers that its steps read of a call, lower case: kept in the call's plan (`Plan.values`). They may differ from call to call."""

    def __init__(self) -> None:
        self.header_names = frozenset()
        self.value_names = frozenset()

    def step_for(self, request: Request, host: VirtualHost | None, route: Route | None) -> Step | None:
        """Its part in the way of such requests on a route, or on none; None if it has none."""
        raise NotImplementedError
