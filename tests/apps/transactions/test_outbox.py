"""Events: with the local transaction or not at all, once in effect, in order per key."""

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from apps.transactions import outbox
from apps.transactions.calling import Caller
from apps.transactions.coordinator.machine import Retries
from apps.transactions.outbox import Relay, Settings, publish
from tests.apps.transactions import bank
from tests.apps.transactions.bank import holdings, ledger, request
from tests.apps.transactions.live import Participant, participant

RETRIES = Retries(first_s=1.0, most_s=8.0, jitter=0.0, dead_after=3)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def consumer(tmp_path: Path) -> AsyncIterator[Participant]:
    async with participant(f"sqlite:///{tmp_path / 'consumer.db'}", {"books": 1000, "sold": 0}) as made:
        yield made


@pytest.fixture
def shop(engine: Engine) -> Engine:
    bank.open_bank(engine, {"reader": 100})
    outbox.create_tables(engine)
    return engine


@pytest.fixture
async def relay(shop: Engine) -> AsyncIterator[Relay]:
    calls = Caller()
    yield Relay(shop, calls, Settings(retries=RETRIES, call_timeout_s=2.0), clock=Clock(), dice=random.Random(0))
    await calls.close()


def waiting(shop: Engine) -> list[str]:
    with shop.connect() as connection:
        return list(connection.execute(select(outbox._OUTBOX.c.event).order_by(outbox._OUTBOX.c.id)).scalars())


async def test_an_event_goes_with_its_local_transaction(shop: Engine, relay: Relay, consumer: Participant) -> None:
    with pytest.raises(ZeroDivisionError), shop.begin() as connection:
        publish(connection, consumer.url("Move"), request("books", -1))
        raise ZeroDivisionError
    assert await relay.round() is False
    with shop.begin() as connection:
        bank.change(connection, None, "reader", -30, 0)
        publish(connection, consumer.url("Move"), request("books", -1))
    assert await relay.round() is True
    assert (holdings(consumer.database)["books"], waiting(shop)) == ((999, 0), [])


async def test_an_event_that_is_delivered_twice_takes_effect_once(
    shop: Engine, relay: Relay, consumer: Participant, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shop.begin() as connection:
        publish(connection, consumer.url("Move"), request("books", -1))
    forget = Relay._forget
    monkeypatch.setattr(Relay, "_forget", lambda self, event: None)  # as if killed behind the call
    await relay.round()
    assert len(waiting(shop)) == 1
    monkeypatch.setattr(Relay, "_forget", forget)
    await relay.round()
    assert (holdings(consumer.database)["books"], waiting(shop)) == ((999, 0), [])


async def test_a_consumer_that_is_away_holds_up_its_key_and_no_other(
    shop: Engine, relay: Relay, consumer: Participant
) -> None:
    with shop.begin() as connection:
        publish(connection, "grpc://127.0.0.1:1/bank.Bank/Move", request("books", -1), key="a", event="a1")
        publish(connection, consumer.url("Move"), request("books", -1), key="a", event="a2")
        publish(connection, consumer.url("Move"), request("books", -1), key="b", event="b1")
    for _ in range(3):
        await relay.round()
    assert waiting(shop) == ["a1", "a2"]
    assert [row[0] for row in ledger(consumer.database)] == ["b1"]


async def test_a_failing_key_is_tried_less_and_less_often_and_becomes_a_dead_letter(shop: Engine, relay: Relay) -> None:
    clock = relay._clock
    assert isinstance(clock, Clock)
    with shop.begin() as connection:
        publish(connection, "grpc://127.0.0.1:1/bank.Bank/Move", request("books", -1), key="a")
    tried = []
    for clock.now in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 7.0):
        before = relay._failures.get("a", 0)
        await relay.round()
        if relay._failures["a"] > before:
            tried.append(clock.now)
    assert tried == [0.0, 1.0, 3.0, 7.0]
    assert outbox.DEAD._value.get() == 1


async def test_events_of_one_key_arrive_in_order_whoever_relays(shop: Engine, consumer: Participant) -> None:
    with shop.begin() as connection:
        for number in range(12):
            publish(connection, consumer.url("Move"), request("books", -1), key=f"k{number % 2}", event=f"e{number:02}")
    calls = Caller()
    relays = [Relay(shop, calls) for _ in range(3)]

    async def drain(relay: Relay) -> None:
        while await asyncio.to_thread(waiting, shop):
            await relay.round()

    await asyncio.gather(*map(drain, relays))
    await calls.close()
    order = [row[0] for row in ledger(consumer.database)]
    assert sorted(order) == [f"e{number:02}" for number in range(12)], "each once"
    for parity in (0, 1):
        mine = [each for each in order if int(each[1:]) % 2 == parity]
        assert mine == sorted(mine)


def test_ids_of_one_key_follow_the_order_of_commits(shop: Engine) -> None:
    with ThreadPoolExecutor(4) as threads:

        def one(number: int) -> None:
            with shop.begin() as connection:
                publish(connection, "grpc://there:1/a.B/C", b"", key="k", event=f"e{number}")
                bank.change(connection, None, "reader", -1, 0)
                connection.execute(
                    bank.LEDGER.update().where(bank.LEDGER.c.gid == "").values(gid=f"e{number}", op="event")
                )

        list(threads.map(one, range(20)))
    assert waiting(shop) == [row[0] for row in ledger(shop)]


def test_what_is_too_large_is_refused(shop: Engine) -> None:
    with shop.begin() as connection:
        with pytest.raises(ValueError, match="65537 bytes; at most 65536 are taken"):
            publish(connection, "grpc://there:1/a.B/C", b"x" * 65537)
        with pytest.raises(ValueError, match="key: is too long"):
            publish(connection, "grpc://there:1/a.B/C", b"", key="k" * 201)
        with pytest.raises(ValueError, match="characters that are not allowed"):
            publish(connection, "grpc://there:1/a.B/C", b"", event="a b")
