"""Streams are brought to a new state some at a time: who is waited for, and for how long."""

import asyncio

import pytest

from control_plane.ads import waves
from control_plane.ads.waves import Wave, batched

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_wave_is_over_when_all_of_it_have_answered() -> None:
    wave = Wave()
    over = asyncio.create_task(wave.over([1, 2]))
    await asyncio.sleep(0)
    wave.settled(1)
    wave.settled(3)  # of an earlier wave
    await asyncio.sleep(0)
    assert not over.done()
    wave.settled(2)
    async with asyncio.timeout(waves.PATIENCE_S / 2):
        await over


async def test_a_stream_that_never_answers_is_waited_for_as_long_as_the_patience_lasts() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await Wave().over([1])
    assert waves.PATIENCE_S <= loop.time() - began < 10 * waves.PATIENCE_S


async def test_nobody_is_waited_for_where_nobody_is_expected_to_answer() -> None:
    async with asyncio.timeout(waves.PATIENCE_S / 2):
        await Wave().over([])


async def test_batches_hold_everything_in_order() -> None:
    assert batched(range(5), 2) == [[0, 1], [2, 3], [4]]
    assert batched([], 2) == []
