"""The timer wheel: never early, at most a slot late, and who is forgotten is not called."""

import asyncio
import weakref
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Final

from sidecar.proxy.timers import MAX_FORGOTTEN, SLOT_S, Timed, TimerWheel

LATE_S: Final = 0.25
"""How much later than the slot the machine may be."""


@dataclass
class Waiter(Timed):
    """Writes down when it was called."""

    deadline: float
    called: list[float] = field(default_factory=list)

    def on_deadline(self) -> None:
        self.called.append(monotonic())
        self.deadline = 0.0


async def _until(moment: float) -> None:
    loop = asyncio.get_running_loop()
    reached = loop.create_future()
    loop.call_later(max(0.0, moment - monotonic()), reached.set_result, None)
    await reached


async def test_everybody_is_called_once_and_not_early() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    chance = Random(1)
    start = monotonic()
    waiters = [Waiter(start + chance.uniform(0.001, 0.2)) for _ in range(200)]
    due = [waiter.deadline for waiter in waiters]
    for waiter in waiters:
        wheel.add(waiter)
    await _until(start + 0.2 + SLOT_S + LATE_S)
    for waiter, moment in zip(waiters, due, strict=True):
        [called] = waiter.called
        assert 0.0 <= called - moment <= SLOT_S + LATE_S


async def test_an_earlier_deadline_that_comes_later_is_kept() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    late, early = Waiter(monotonic() + 60.0), Waiter(monotonic() + 0.02)
    wheel.add(late)
    wheel.add(early)
    await _until(early.deadline + SLOT_S + LATE_S)
    assert len(early.called) == 1
    assert late.called == []


async def test_who_set_its_deadline_to_0_is_not_called() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    forgotten, kept = Waiter(monotonic() + 0.02), Waiter(monotonic() + 0.02)
    wheel.add(forgotten)
    wheel.add(kept)
    end = kept.deadline + SLOT_S + LATE_S
    forgotten.deadline = 0.0
    await _until(end)
    assert (len(forgotten.called), len(kept.called)) == (0, 1)


async def test_a_deadline_that_moved_forward_is_met_once() -> None:
    """As a call's does: first its own deadline, then the route's, which is shorter."""
    wheel = TimerWheel(asyncio.get_running_loop())
    waiter = Waiter(monotonic() + 0.15)
    end = waiter.deadline + SLOT_S + LATE_S
    wheel.add(waiter)
    waiter.deadline = monotonic() + 0.03
    due = waiter.deadline
    wheel.add(waiter)
    await _until(end)
    [called] = waiter.called
    assert due <= called < due + SLOT_S + LATE_S


async def test_one_that_adds_another_when_called_is_followed_by_it() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    second = Waiter(0.0)

    class First(Waiter):
        def on_deadline(self) -> None:
            super().on_deadline()
            second.deadline = monotonic() + 0.02
            wheel.add(second)

    first = First(monotonic() + 0.02)
    wheel.add(first)
    await _until(first.deadline + 0.02 + 2 * SLOT_S + LATE_S)
    assert len(first.called) == len(second.called) == 1


async def test_who_is_forgotten_is_not_held_until_its_deadline() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    far = monotonic() + 3600.0
    waiting = [Waiter(far + number) for number in range(50)]
    held: list[weakref.ref[Waiter]] = []
    for number in range(20 * MAX_FORGOTTEN):
        waiter = Waiter(far + number % 100)
        wheel.add(waiter)
        waiter.deadline = 0.0
        held.append(weakref.ref(waiter))
        if number < len(waiting):
            wheel.add(waiting[number])
    del waiter
    assert sum(ref() is not None for ref in held) <= MAX_FORGOTTEN
    waiting[0].deadline = monotonic() + 0.02
    wheel.add(waiting[0])
    await _until(waiting[0].deadline + SLOT_S + LATE_S)
    assert [len(waiter.called) for waiter in waiting] == [1] + [0] * 49


async def test_a_sweep_while_the_wheel_turns_loses_nobody() -> None:
    wheel = TimerWheel(asyncio.get_running_loop())
    others = [Waiter(monotonic() + 0.05) for _ in range(20)]

    class Busy(Waiter):
        def on_deadline(self) -> None:
            super().on_deadline()
            for _ in range(2 * MAX_FORGOTTEN):
                passing = Waiter(monotonic() + 60.0)
                wheel.add(passing)
                passing.deadline = 0.0

    busy = [Busy(monotonic() + 0.02 + number * SLOT_S) for number in range(4)]
    for waiter in (*others, *busy):
        wheel.add(waiter)
    end = max(waiter.deadline for waiter in (*others, *busy)) + SLOT_S + LATE_S
    await _until(end)
    assert [len(waiter.called) for waiter in (*others, *busy)] == [1] * 24
