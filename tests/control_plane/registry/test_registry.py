"""Who is there: instances under leases, on a store whose clock the test moves."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from control_plane.registry import keys
from control_plane.registry.registry import MAX_ATTEMPTS, InstanceNotFound, Registry, TooBusy
from control_plane.store.contract import LeaseNotFound, Put, StoreUnavailable
from control_plane.store.embedded import RESTART_GRACE_S
from proto.mesh.v1 import service_pb2
from tests.control_plane.registry.subject import Clock, Outage, Subject, opened

TTL_S = 10


@pytest_asyncio.fixture
async def subject(tmp_path: Path) -> AsyncIterator[Subject]:
    async with opened(tmp_path) as found:
        yield found


def instance(instance_id: str = "w1", **fields: object) -> service_pb2.Instance:
    made = service_pb2.Instance(id=instance_id, service="warehouse", namespace="shop", address="127.0.0.1", port=50051)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


async def test_an_instance_is_there_with_its_defaults(subject: Subject) -> None:
    granted = await subject.registry.register(instance(namespace=""), TTL_S)
    assert granted.ttl_s == TTL_S
    (found,) = (await subject.there()).values()
    assert (found.namespace, found.weight, found.health) == ("default", 1, service_pb2.HEALTHY)


async def test_what_is_said_of_an_instance_is_kept(subject: Subject) -> None:
    await subject.registry.register(instance(weight=7, health=service_pb2.UNHEALTHY, version="v2"), TTL_S)
    found = (await subject.there())["w1"]
    assert (found.weight, found.health, found.version) == (7, service_pb2.UNHEALTHY, "v2")


# -- leases ----------------------------------------------------------------------------------------------


async def test_an_instance_leaves_when_its_lease_ends(subject: Subject) -> None:
    await subject.registry.register(instance(), TTL_S)
    await subject.pass_time(TTL_S - 0.1)
    assert list(await subject.there()) == ["w1"]
    await subject.pass_time(0.2)
    assert await subject.there() == {}


async def test_an_instance_that_is_kept_alive_stays(subject: Subject) -> None:
    granted = await subject.registry.register(instance(), TTL_S)
    for _ in range(5):
        await subject.pass_time(TTL_S - 1)
        assert await subject.registry.keep_alive(granted.lease_id) == TTL_S
    assert list(await subject.there()) == ["w1"]


async def test_a_lease_that_has_ended_cannot_be_kept_alive(subject: Subject) -> None:
    granted = await subject.registry.register(instance(), TTL_S)
    await subject.pass_time(TTL_S + 1)
    with pytest.raises(LeaseNotFound):
        await subject.registry.keep_alive(granted.lease_id)


async def test_an_instance_that_registers_again_is_replaced_and_its_old_lease_takes_nothing_along(
    subject: Subject,
) -> None:
    old = await subject.registry.register(instance(), TTL_S)
    await subject.pass_time(TTL_S - 1)
    new = await subject.registry.register(instance(port=50052), TTL_S)
    assert new.lease_id != old.lease_id
    with pytest.raises(LeaseNotFound):
        await subject.registry.keep_alive(old.lease_id)
    await subject.pass_time(TTL_S - 1)
    assert (await subject.there())["w1"].port == 50052
    await subject.pass_time(2)
    assert await subject.there() == {}


async def test_a_change_of_health_does_not_prolong_the_lease(subject: Subject) -> None:
    await subject.registry.register(instance(), TTL_S)
    await subject.pass_time(TTL_S - 1)
    await subject.registry.set_health("shop", "warehouse", "w1", service_pb2.DRAINING)
    await subject.pass_time(2)
    assert await subject.there() == {}


async def test_a_restart_of_the_control_plane_does_not_empty_the_mesh(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject:
        granted = await subject.registry.register(instance(), TTL_S)
        lost = await subject.registry.register(instance("w2"), TTL_S)
    clock.now += 3600  # it was down for an hour; the instances could not renew
    async with opened(tmp_path, clock) as subject:
        await subject.pass_time(TTL_S + RESTART_GRACE_S - 1)
        assert sorted(await subject.there()) == ["w1", "w2"]
        await subject.registry.keep_alive(granted.lease_id)
        await subject.pass_time(2)
        assert sorted(await subject.there()) == ["w1"]
        with pytest.raises(LeaseNotFound):
            await subject.registry.keep_alive(lost.lease_id)


# -- health ----------------------------------------------------------------------------------------------


async def test_health_changes_and_says_at_which_revision(subject: Subject) -> None:
    await subject.registry.register(instance(), TTL_S)
    revision = await subject.registry.set_health("shop", "warehouse", "w1", service_pb2.DRAINING)
    assert (await subject.store.range(keys.INSTANCES)).revision == revision
    assert (await subject.there())["w1"].health == service_pb2.DRAINING
    # Said again it changes nothing, and names the revision at which it was so.
    assert await subject.registry.set_health("shop", "warehouse", "w1", service_pb2.DRAINING) == revision


async def test_health_of_an_instance_that_is_not_there(subject: Subject) -> None:
    with pytest.raises(InstanceNotFound, match=r"no instance w1 of warehouse\.default"):
        await subject.registry.set_health("", "warehouse", "w1", service_pb2.DRAINING)


async def test_health_does_not_undo_what_somebody_else_changed_meanwhile(subject: Subject) -> None:
    store = Outage(subject.store)
    await subject.registry.register(instance(), TTL_S)
    item = await store.get(keys.instance("shop", "warehouse", "w1"))
    assert item is not None

    async def changes_weight() -> None:
        changed = instance(weight=9, health=service_pb2.HEALTHY)
        await subject.store.txn((), [Put(item.key, changed.SerializeToString(), item.lease)])

    store.before_txn = changes_weight
    await Registry(store).set_health("shop", "warehouse", "w1", service_pb2.UNHEALTHY)
    found = (await subject.there())["w1"]
    assert (found.weight, found.health) == (9, service_pb2.UNHEALTHY)


async def test_health_of_an_instance_whose_lease_ends_meanwhile_does_not_bring_it_back(subject: Subject) -> None:
    store = Outage(subject.store)
    await subject.registry.register(instance(), TTL_S)
    store.before_txn = lambda: subject.pass_time(TTL_S + 1)
    with pytest.raises(InstanceNotFound):
        await Registry(store).set_health("shop", "warehouse", "w1", service_pb2.UNHEALTHY)
    assert await subject.there() == {}


async def test_health_of_an_instance_that_registers_again_meanwhile_is_that_of_the_new_one(subject: Subject) -> None:
    store = Outage(subject.store)
    await subject.registry.register(instance(), TTL_S)
    store.before_txn = lambda: subject.registry.register(instance(port=50052), TTL_S)
    await Registry(store).set_health("shop", "warehouse", "w1", service_pb2.UNHEALTHY)
    found = (await subject.there())["w1"]
    assert (found.port, found.health) == (50052, service_pb2.UNHEALTHY)


async def test_health_gives_up_when_others_change_the_instance_all_the_time(subject: Subject) -> None:
    store = Outage(subject.store)
    await subject.registry.register(instance(), TTL_S)
    changes = 0

    async def again() -> None:
        nonlocal changes
        changes += 1
        await subject.registry.register(instance(port=50052 + changes), TTL_S)
        store.before_txn = again

    store.before_txn = again
    with pytest.raises(TooBusy, match="instance w1 changes all the time; try again"):
        await Registry(store).set_health("shop", "warehouse", "w1", service_pb2.UNHEALTHY)
    assert changes == MAX_ATTEMPTS


# -- leaving ---------------------------------------------------------------------------------------------


async def test_an_instance_that_deregisters_is_gone_with_its_lease(subject: Subject) -> None:
    granted = await subject.registry.register(instance(), TTL_S)
    await subject.registry.register(instance("w2"), TTL_S)
    await subject.registry.deregister("shop", "warehouse", "w1")
    assert list(await subject.there()) == ["w2"]
    with pytest.raises(LeaseNotFound):
        await subject.registry.keep_alive(granted.lease_id)
    await subject.registry.deregister("shop", "warehouse", "w1")  # no error: it is not there, as was asked


async def test_while_the_store_is_away_nothing_is_pretended(subject: Subject) -> None:
    store = Outage(subject.store)
    await store.go_away()
    for call in (
        Registry(store).register(instance(), TTL_S),
        Registry(store).keep_alive(1),
        Registry(store).set_health("shop", "warehouse", "w1", service_pb2.HEALTHY),
        Registry(store).deregister("shop", "warehouse", "w1"),
    ):
        with pytest.raises(StoreUnavailable):
            await call
