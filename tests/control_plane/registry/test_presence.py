"""What a mirror shows of instances whose leases end, on a real store whose clock the test moves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest

from control_plane.registry import keys
from control_plane.registry.mirror import Mirror
from control_plane.registry.presence import Presence
from control_plane.store.contract import Put
from control_plane.store.embedded import RESTART_GRACE_S
from proto.mesh.v1 import service_pb2
from tests.control_plane.registry.subject import Clock, Subject, opened
from tests.waiting import eventually_async

TTL_S = 10


async def register(subject: Subject, *names: str, **fields: object) -> None:
    """`service/id` each, in namespace shop."""
    for name in names:
        service, _, instance_id = name.partition("/")
        instance = service_pb2.Instance(
            id=instance_id,
            service=service,
            namespace="shop",
            address="10.0.0.1",
            port=80,
            **fields,  # type: ignore[arg-type]
        )
        await subject.registry.register(instance, TTL_S)


@asynccontextmanager
async def mirror_of(subject: Subject, clock: Clock) -> AsyncIterator[Mirror]:
    """One that has loaded."""
    mirror = Mirror(subject.store, presence=Presence(clock=clock))
    task = asyncio.create_task(mirror.run())
    try:
        await asyncio.wait_for(mirror.is_loaded.wait(), 10)
        yield mirror
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def seen(mirror: Mirror, service: str = "cart") -> dict[str, str]:
    """Health by id."""
    return {each.id: service_pb2.Health.Name(each.health) for each in mirror.state.instances_of("shop", service)}


async def caught_up(mirror: Mirror, subject: Subject) -> None:
    """Wait until the mirror has seen everything there is now."""
    result = await subject.store.txn((), [Put(keys.ROOT + b"noise", b"")])
    await eventually_async(lambda: mirror.state.revision >= result.revision)


async def test_a_wave_of_lost_leases_is_held_until_they_register_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        await register(subject, "cart/a", "cart/b", "cart/c", version="v1")
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "HEALTHY", "b": "HEALTHY", "c": "HEALTHY"}
        await subject.pass_time(TTL_S + 1)
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "HELD", "b": "HELD", "c": "HELD"}
        assert {each.version for each in mirror.state.instances_of("shop", "cart")} == {"v1"}
        assert caplog.text.count("the leases of most instances of cart.shop ended within seconds") == 1
        assert "`remora release` lets them go" in caplog.text
        await register(subject, "cart/b")
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "HELD", "b": "HEALTHY", "c": "HELD"}
        assert await subject.registry.release(mirror.state.held) == 2
        await caught_up(mirror, subject)
        assert seen(mirror) == {"b": "HEALTHY"} and mirror.state.held == frozenset()
        assert "no instance of cart.shop is held any more" in caplog.text


async def test_a_single_death_is_no_wave(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        await register(subject, "cart/a", "cart/b", "cart/c")
        await register(subject, "cart/dies")
        await subject.pass_time(TTL_S / 2)
        await register(subject, "cart/a", "cart/b", "cart/c")
        await subject.pass_time(TTL_S / 2 + 1)
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "HEALTHY", "b": "HEALTHY", "c": "HEALTHY"}
        assert mirror.presence.waves.gone(clock.now) == frozenset()
        clock.now += 31
        assert mirror.presence.waves.gone(clock.now) == {keys.instance("shop", "cart", "dies")}


async def test_who_deregisters_or_drains_is_not_held(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        await register(subject, "cart/a", "cart/b", "cart/c", "cart/d")
        await subject.registry.deregister("shop", "cart", "a")
        await subject.registry.set_health("shop", "cart", "b", service_pb2.DRAINING)
        await subject.registry.drain("shop", "cart", "c", True)
        await caught_up(mirror, subject)
        assert seen(mirror) == {"b": "DRAINING", "c": "DRAINING", "d": "HEALTHY"}
        await subject.pass_time(TTL_S + 1)
        await caught_up(mirror, subject)
        assert seen(mirror) == {}


async def test_a_control_plane_that_was_away_holds_what_was_lost_meanwhile(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject:
        await register(subject, "cart/a", "cart/b", "stock/a", "stock/b")
    clock.now += 10_000
    async with opened(tmp_path, clock) as subject:  # leases have their grace
        await register(subject, "stock/a")
        await subject.pass_time(TTL_S + RESTART_GRACE_S + 1)
        await register(subject, "stock/a", "stock/b")
        async with mirror_of(subject, clock) as mirror:
            assert seen(mirror) == {"a": "HELD", "b": "HELD"}
            assert seen(mirror, "stock") == {"a": "HEALTHY", "b": "HEALTHY"}


async def test_what_an_operator_drained_stays_drained_whatever_its_program_says(tmp_path: Path) -> None:
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        await register(subject, "cart/a", "cart/b")
        await subject.registry.drain("shop", "cart", "a", True)
        for health in (service_pb2.UNHEALTHY, service_pb2.HEALTHY):
            await subject.registry.set_health("shop", "cart", "a", health)
            await caught_up(mirror, subject)
            assert seen(mirror) == {"a": "DRAINING", "b": "HEALTHY"}
        await register(subject, "cart/a")
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "DRAINING", "b": "HEALTHY"}
        await subject.registry.drain("shop", "cart", "a", False)
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "HEALTHY", "b": "HEALTHY"}
        await subject.registry.drain("shop", "cart", "a", True)
        await subject.registry.deregister("shop", "cart", "a")
        await register(subject, "cart/a")
        await caught_up(mirror, subject)
        assert seen(mirror) == {"a": "HEALTHY", "b": "HEALTHY"}, "who left is not drained when he comes again"


async def test_a_change_of_who_is_held_is_among_what_changed(tmp_path: Path) -> None:
    """What is told of a state's difference to the one before must cover those whose records nobody touched."""
    clock = Clock()
    async with opened(tmp_path, clock) as subject, mirror_of(subject, clock) as mirror:
        states = [mirror.state]
        mirror.on_change(states.append)
        await register(subject, "cart/a", "cart/b", "cart/c")
        await subject.pass_time(TTL_S + 1)
        await register(subject, "cart/a")
        await subject.registry.drain("shop", "cart", "a", True)
        await caught_up(mirror, subject)
        await subject.registry.release(mirror.state.held)
        await subject.registry.drain("shop", "cart", "a", False)
        await caught_up(mirror, subject)
        for before, after in pairwise(states):
            assert after.changed is not None
            differs = {
                key
                for key in before.instances.keys() | after.instances.keys()
                if before.instances.get(key) != after.instances.get(key)
            }
            assert differs <= after.changed
