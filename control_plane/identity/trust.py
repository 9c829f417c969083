"""Whom the mesh trusts, and the three steps in which that changes. Pure: what is stored and who holds what are parameters.

    steady ──add──► added ──switch──► switched ──drop──► steady

A step is refused while somebody who is alive would fail by it: nobody signs under a root that a holder does not trust yet, and no root
is dropped under which a holder's certificate was signed.
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final, TypeAlias

from proto.mesh.v1 import identity_pb2

MAX_NAMED: Final = 20
"""Holders that one message names."""

Step = identity_pb2.RotateRequest.Stage
StepValue: TypeAlias = identity_pb2.RotateRequest.Stage.ValueType


class Stage(Enum):
    """Where a change of the root stands."""

    STEADY = "steady"
    """One root."""
    ADDED = "added"
    """A second one is trusted; leaves are signed under the first."""
    SWITCHED = "switched"
    """Leaves are signed under the second; the first is trusted still."""


TRANSITIONS: Final[Mapping[tuple[Stage, StepValue], Stage]] = {
    (Stage.STEADY, identity_pb2.RotateRequest.ADD): Stage.ADDED,
    (Stage.ADDED, identity_pb2.RotateRequest.SWITCH): Stage.SWITCHED,
    (Stage.SWITCHED, identity_pb2.RotateRequest.DROP): Stage.STEADY,
}


class NotNow(Exception):
    """A step that is not possible; the text says why, and who is not ready."""


def stage(trust: identity_pb2.Trust) -> Stage:
    """Where the change of the root stands."""
    if len(trust.roots) < 2:
        return Stage.STEADY
    return Stage.ADDED if trust.issuing == trust.roots[0].fingerprint else Stage.SWITCHED


def first(trust_domain: str, root: identity_pb2.Root) -> identity_pb2.Trust:
    """Of a mesh that has just got its root."""
    return identity_pb2.Trust(trust_domain=trust_domain, generation=1, roots=[root], issuing=root.fingerprint)


def check(
    trust: identity_pb2.Trust, step: StepValue, holders: Iterable[identity_pb2.Holder] = (), *, force: bool = False
) -> Stage:
    """The stage that a step leads to. Raises NotNow."""
    now = stage(trust)
    after = TRANSITIONS.get((now, step))
    if after is None:
        possible = " or ".join(Step.Name(each).lower() for at, each in TRANSITIONS if at is now)
        raise NotNow(f"the change of the root is at {now.value}: the next step is {possible}, not {_name(step)}")
    if after is Stage.SWITCHED and not force:
        known: dict[str, identity_pb2.Holder] = {}
        for holder in holders:
            if holder.node_id not in known or known[holder.node_id].generation < holder.generation:
                known[holder.node_id] = holder
        _refuse(
            "do not trust the new root yet", (each for each in known.values() if each.generation < trust.generation)
        )
    if after is Stage.STEADY and not force:
        _refuse("still use the old root", (each for each in holders if each.root != trust.issuing))
    return after


def _name(step: StepValue) -> str:
    return Step.Name(step).lower() if step in Step.values() else str(step)


def _refuse(why: str, holders: Iterable[identity_pb2.Holder]) -> None:
    """Raises NotNow if there are such holders."""
    found = sorted(holders, key=lambda holder: holder.node_id)
    if not found:
        return
    named = "; ".join(
        f"{each.node_id} ({each.identity}, until {each.not_after.ToJsonString()})" for each in found[:MAX_NAMED]
    )
    rest = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    raise NotNow(f"{len(found)} live peers {why}: {named}{rest}")


def advanced(trust: identity_pb2.Trust, after: Stage, root: identity_pb2.Root | None = None) -> identity_pb2.Trust:
    """The trust at a stage; `root` is the new one for ADDED."""
    fresh = identity_pb2.Trust()
    fresh.CopyFrom(trust)
    fresh.generation += 1
    match after:
        case Stage.ADDED:
            assert root is not None
            fresh.roots.append(root)
        case Stage.SWITCHED:
            fresh.issuing = fresh.roots[-1].fingerprint
        case Stage.STEADY:
            del fresh.roots[0]
    return fresh
