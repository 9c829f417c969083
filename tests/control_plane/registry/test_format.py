"""The version of what stands in the store: brought up, or refused with nothing touched. On both stores."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from control_plane.registry import format, keys
from control_plane.registry.format import NewerStore, settle
from control_plane.store.contract import Put, Store
from control_plane.store.embedded import EmbeddedStore
from control_plane.store.etcd import EtcdStore
from proto.mesh.v1 import service_pb2
from tests.etcd import etcd_cluster

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(params=["embedded", "etcd"], loop_scope="session")
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "embedded":
        found = await EmbeddedStore.open(tmp_path / "store")
        yield found
        await found.close()
        return
    with etcd_cluster(tmp_path) as cluster:
        other = await EtcdStore.open(cluster.target)
        yield other
        await other.close()


def instance(name: str, health: service_pb2.Health.ValueType = service_pb2.HEALTHY) -> Put:
    """As the first release stored it."""
    record = service_pb2.Instance(id=name, service="cart", namespace="shop", address="10.0.0.1", port=80, health=health)
    return Put(keys.instance("shop", "cart", name), record.SerializeToString(deterministic=True))


async def content(store: Store) -> dict[bytes, bytes]:
    return {item.key: item.value for item in (await store.range(b"/remora/")).items}


async def test_an_empty_store_is_of_our_version(store: Store) -> None:
    await settle(store)
    assert await content(store) == {keys.FORMAT: b"2"}
    before = (await store.range(b"")).revision
    await settle(store)
    assert (await store.range(b"")).revision == before, "nothing is written where nothing is to be done"


async def test_a_store_of_the_first_release_gets_its_roster(store: Store) -> None:
    records = [instance("a"), instance("b", service_pb2.UNHEALTHY), instance("leaves", service_pb2.DRAINING)]
    bad = Put(keys.instance("shop", "cart", "bad"), b"\xff\xff")
    await store.txn((), [*records, bad, Put(keys.resource("Service", "shop", "cart"), b"whatever")])
    before = await content(store)
    await settle(store)
    after = await content(store)
    fresh = {key: after[key] for key in after.keys() - before.keys()}
    assert {key: after[key] for key in before} == before, "what was there is as it was"
    assert fresh == {
        keys.FORMAT: b"2",
        keys.roster("shop", "cart", "a"): records[0].value,
        keys.roster("shop", "cart", "b"): records[1].value,
    }


async def test_a_fleet_is_brought_up_in_few_transactions(store: Store) -> None:
    records = [instance(f"i{number}") for number in range(200)]
    for at in range(0, 200, 100):
        await store.txn((), records[at : at + 100])
    before = (await store.range(b"")).revision
    await settle(store)
    assert len((await store.range(keys.ROSTER)).items) == 200
    assert (await store.range(b"")).revision - before <= 5, "each of them is waited for until it is on the disk"


async def test_a_migration_that_was_interrupted_goes_on_and_two_at_once_do_no_harm(store: Store) -> None:
    fresher = instance("a", service_pb2.UNHEALTHY).value
    await store.txn((), [instance("a"), instance("b"), Put(keys.roster("shop", "cart", "a"), fresher)])
    await asyncio.gather(settle(store), settle(store), settle(store))
    found = await content(store)
    assert found[keys.FORMAT] == b"2"
    assert found[keys.roster("shop", "cart", "a")] == fresher, "what a newer one wrote meanwhile stays"
    assert found[keys.roster("shop", "cart", "b")] == instance("b").value


@pytest.mark.parametrize("version", [b"3", b"999999999", b"", b"two", b"-1", b"2.0"])
async def test_a_store_of_a_newer_release_is_refused_and_nothing_is_touched(store: Store, version: bytes) -> None:
    await store.txn((), [instance("a"), Put(keys.FORMAT, version)])
    before = await store.range(b"")
    with pytest.raises(NewerStore, match="nothing was changed"):
        await settle(store)
    assert await store.range(b"") == before


async def test_every_version_but_the_present_one_has_a_step_to_the_next() -> None:
    assert sorted(format._STEPS) == list(range(1, format.VERSION))
