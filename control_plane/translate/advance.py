"""The view of a mesh after some keys of the store changed, at the cost of what changed.

`view.mesh` is the plain version of it, and its oracle: `advance(view.mesh(before), after).mesh == view.mesh(after)`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from control_plane.registry import keys
from control_plane.registry.state import State, selects
from control_plane.translate import view
from control_plane.translate.view import Declared, Key, MeshView, Present
from proto.mesh.v1 import service_pb2


@dataclass(frozen=True, slots=True)
class Step:
    """From one view to the next."""

    mesh: MeshView
    touched: frozenset[Key]
    """The services that are not the same as before: changed, new, or gone."""


def advance(old: MeshView, state: State, changed: frozenset[bytes] | None) -> Step:
    """The view of `state`, which differs from that of `old` in these keys at most (None: in any)."""
    if changed is None:
        return _redeclared(old, state, view.present(state))
    instances = [key for key in changed if key.startswith(keys.INSTANCES)]
    present, touched = (
        _present(old.present, state, instances, old.declared) if instances else (old.present, frozenset[Key]())
    )
    if any(key.startswith(keys.RESOURCES) or key == keys.TRUST for key in changed):
        return _redeclared(old, state, present)
    fresh = {key: found for key in touched if (found := _service(key, old.declared, present)) is not None}
    by_name = {**old.by_name, **fresh}
    gone = [key for key in touched if key not in fresh and by_name.pop(key, None) is not None]
    if gone or len(by_name) != len(old.by_name):
        by_name = dict(sorted(by_name.items(), key=lambda item: item[0]))
    differ = frozenset(key for key in fresh if old.by_name.get(key) != fresh[key])
    return Step(MeshView(state.revision, by_name, old.declared, present), differ.union(gone))


def _redeclared(old: MeshView, state: State, present: Present) -> Step:
    """Resources changed: what they say is read as a whole, and compared service by service."""
    declared = view.declared(state)
    by_name = {}
    for key in sorted(declared.names | present.by_service.keys()):
        fresh, known = view.service(key, declared, present), old.by_name.get(key)
        by_name[key] = known if known is not None and known == fresh else fresh
    touched = {key for key, service in by_name.items() if old.by_name.get(key) is not service}
    touched |= old.by_name.keys() - by_name.keys()
    return Step(MeshView(state.revision, by_name, declared, present), frozenset(touched))


def _service(key: Key, declared: Declared, present: Present) -> view.ServiceView | None:
    if key not in declared.names and key not in present.by_service:
        return None
    return view.service(key, declared, present)


def _present(
    old: Present, state: State, changed: Iterable[bytes], declared: Declared
) -> tuple[Present, frozenset[Key]]:
    """Who is there now, and the services that one of the instances that came, went or changed may stand behind."""
    by_service, by_node = dict(old.by_service), dict(old.by_node)
    touched: set[Key] = set()
    for raw in changed:
        before, after = old.instances.get(raw), state.instances.get(raw)
        for instance in (before, after):
            if instance is not None:
                touched.update(_names(instance, declared))
        if before is not None:
            _take_out(by_service, (before.namespace, before.service), before)
            _take_out(by_node, before.node_id, before)
        if after is not None:
            _put_in(by_service, (after.namespace, after.service), after)
            _put_in(by_node, after.node_id, after)
    return Present(state.instances, by_service, by_node), frozenset(touched)


def _names(instance: service_pb2.Instance, declared: Declared) -> Iterator[Key]:
    """Every service that an instance stands behind, or might if that had no selector."""
    yield instance.namespace, instance.service
    for key, selector in declared.selectors.get(instance.namespace, {}).items():
        if selects(selector, instance):
            yield key


Instances = tuple[service_pb2.Instance, ...]


def _take_out(index: "dict[view.K, Instances]", key: view.K, gone: service_pb2.Instance) -> None:
    if not key:
        return
    rest = tuple(item for item in index.get(key, ()) if item is not gone)
    if rest:
        index[key] = rest
    else:
        index.pop(key, None)


def _put_in(index: "dict[view.K, Instances]", key: view.K, come: service_pb2.Instance) -> None:
    if key:
        index[key] = tuple(sorted((*index.get(key, ()), come), key=view.order))
