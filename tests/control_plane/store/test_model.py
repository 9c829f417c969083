"""Both stores against a model that fits on a page, over sequences of steps by chance.

After each step a reading is compared with the model; at the end the whole history is read again by a watch from a revision by chance.
"""

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from control_plane.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    EventType,
    KeyValue,
    LeaseNotFound,
    Listing,
    Put,
    TxnResult,
)
from tests.control_plane.store.subject import EmbeddedSubject, EtcdSubject, put, take
from tests.etcd import EtcdCluster

pytestmark = pytest.mark.asyncio(loop_scope="session")

T = TypeVar("T")


@dataclass
class Model:
    """What a store is, if nothing can fail."""

    revision: int
    data: dict[bytes, KeyValue] = field(default_factory=dict)
    leases: dict[int, int] = field(default_factory=dict)
    """TTL by lease."""
    events: list[Event] = field(default_factory=list)
    compacted: int = 0

    def txn(self, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult | None:
        """None: LeaseNotFound."""
        for compare in compares:
            found = self.data.get(compare.key)
            if (found.mod_revision if found else 0) != compare.mod_revision:
                return TxnResult(False, self.revision)
        if any(isinstance(op, Put) and op.lease and op.lease not in self.leases for op in ops):
            return None
        fresh = self.revision + 1
        for op in ops:
            old = self.data.get(op.key)
            if isinstance(op, Put):
                created = old.create_revision if old else fresh
                self.data[op.key] = KeyValue(op.key, op.value, created, fresh, op.lease)
                self.events.append(Event(EventType.PUT, op.key, op.value, fresh, op.lease))
                self.revision = fresh
            elif old:
                del self.data[op.key]
                self.events.append(Event(EventType.DELETE, op.key, b"", fresh))
                self.revision = fresh
        return TxnResult(True, self.revision)

    def end(self, lease: int) -> None:
        if self.leases.pop(lease, None) is not None:
            self.txn((), [Delete(key) for key in sorted(self.data) if self.data[key].lease == lease])

    def range(self, prefix: bytes) -> Listing:
        return Listing(tuple(self.data[key] for key in sorted(self.data) if key.startswith(prefix)), self.revision)


keys = st.sampled_from([b"a", b"a/", b"a/1", b"a/2", b"a/\xff", b"b", b"\xff", b"\xff\x00"])
prefixes = st.sampled_from([b"", b"a", b"a/", b"a/1", b"b", b"c", b"\xff"])
pick = st.integers(min_value=0, max_value=10)


@st.composite
def operations(draw: st.DrawFn) -> list[tuple[bytes, bytes | None, int | None]]:
    """Key, value (None: delete it), and the number of a lease (None: without)."""
    chosen = draw(st.lists(keys, max_size=4, unique=True))
    values = st.none() | st.binary(max_size=3)
    return [(key, draw(values), draw(st.none() | pick)) for key in chosen]


class StoreMachine(RuleBasedStateMachine):
    """Steps, made in a thread while the test's event loop runs the store: grpc.aio does not like a loop for each run."""

    def __init__(self, loop: asyncio.AbstractEventLoop, subject: EmbeddedSubject | EtcdSubject) -> None:
        super().__init__()
        self.loop = loop
        self.subject = subject
        self.granted: list[int] = []

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(step, self.loop).result(timeout=20)

    @initialize()
    def begin(self) -> None:
        self.run(self.subject.open())
        self.run(put(self.subject.store, b"begin"))  # an etcd without any history cannot be compacted
        self.run(self.subject.store.txn((), [Delete(b"begin")]))
        self.run(self.subject.store.compact())
        revision = self.run(self.subject.store.range(b"")).revision
        self.model = Model(revision, compacted=revision)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            try:
                self.read_history_again()
            finally:
                self.run(self.subject.close())

    def lease(self, number: int | None) -> int:
        """One that was granted, whether it has ended or not; an unknown one if there is none."""
        return 0 if number is None else self.granted[number % len(self.granted)] if self.granted else 424242

    @rule(ops=operations())
    def write(self, ops: list[tuple[bytes, bytes | None, int | None]]) -> None:
        self.check_txn((), ops)

    @rule(ops=operations(), compared=st.lists(keys, max_size=3), is_stale=st.booleans())
    def compare_and_write(
        self, ops: list[tuple[bytes, bytes | None, int | None]], compared: list[bytes], is_stale: bool
    ) -> None:
        compares = [
            Compare(key, self.model.data[key].mod_revision if key in self.model.data else 0) for key in compared
        ]
        if is_stale and compares:
            compares[-1] = Compare(compares[-1].key, max(0, compares[-1].mod_revision - 1))
        self.check_txn(compares, ops)

    def check_txn(self, compares: Sequence[Compare], ops: list[tuple[bytes, bytes | None, int | None]]) -> None:
        given = [Delete(key) if value is None else Put(key, value, self.lease(lease)) for key, value, lease in ops]
        expected = self.model.txn(compares, given)
        if expected is None:
            with pytest.raises(LeaseNotFound):
                self.run(self.subject.store.txn(compares, given))
        else:
            assert self.run(self.subject.store.txn(compares, given)) == expected

    @rule(ttl_s=st.integers(min_value=100, max_value=200))
    def grant(self, ttl_s: int) -> None:
        lease = self.run(self.subject.store.grant(ttl_s))
        assert lease not in self.granted
        self.granted.append(lease)
        self.model.leases[lease] = ttl_s

    @rule(number=pick)
    def keep_alive(self, number: int) -> None:
        lease = self.lease(number)
        if lease in self.model.leases:
            assert self.run(self.subject.store.keep_alive(lease)) == self.model.leases[lease]
        else:
            with pytest.raises(LeaseNotFound):
                self.run(self.subject.store.keep_alive(lease))

    @rule(number=pick)
    def revoke(self, number: int) -> None:
        self.run(self.subject.store.revoke(self.lease(number)))
        self.model.end(self.lease(number))

    @rule()
    def compact(self) -> None:
        self.run(self.subject.store.compact())
        self.model.compacted = self.model.revision

    @invariant()
    def reads_are_the_models(self) -> None:
        if hasattr(self, "model"):
            assert self.run(self.subject.store.range(b"")) == self.model.range(b"")

    @rule(prefix=prefixes, key=keys)
    def read(self, prefix: bytes, key: bytes) -> None:
        assert self.run(self.subject.store.range(prefix)) == self.model.range(prefix)
        assert self.run(self.subject.store.get(key)) == self.model.data.get(key)

    @rule(prefix=prefixes, back=pick)
    def watch_history(self, prefix: bytes, back: int) -> None:
        start = max(1, self.model.revision + 1 - back)
        expected = [each for each in self.model.events if each.revision >= start and each.key.startswith(prefix)]
        if start <= self.model.compacted:
            with pytest.raises(Compacted):
                self.run(take(self.subject.store.watch(prefix, start), 1))
        else:
            assert self.run(self.events(prefix, start, len(expected))) == expected

    async def events(self, prefix: bytes, start: int, count: int) -> list[Event]:
        async with aclosing(self.subject.store.watch(prefix, start)) as batches:
            return await take(batches, count)

    def read_history_again(self) -> None:
        self.watch_history(b"", max(0, self.model.revision - self.model.compacted))


class EmbeddedMachine(StoreMachine):
    """With a clock of its own, and closed and opened again at any moment."""

    @rule()
    def open_again(self) -> None:
        self.run(self.subject.open())
        self.model.compacted = self.model.revision

    @precondition(lambda self: self.model.leases)
    @rule(number=pick)
    def let_a_lease_end(self, number: int) -> None:
        """All others are kept alive in the last moment."""
        lease = self.lease(number)
        assert isinstance(self.subject, EmbeddedSubject)
        self.subject.clock.now += 1000
        for other in self.model.leases.keys() - {lease}:
            self.run(self.subject.store.keep_alive(other))
        self.run(self.subject.store.expire_due())
        self.model.end(lease)


STEPS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


async def check(machine: Callable[[asyncio.AbstractEventLoop], StoreMachine], examples: int, steps: int) -> None:
    loop = asyncio.get_running_loop()
    bounds = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=STEPS)
    made: Any = lambda: machine(loop)  # noqa: E731 - annotated so as to pass for the class that is asked for
    await asyncio.to_thread(run_state_machine_as_test, made, settings=bounds)


async def test_the_embedded_store_is_the_model(tmp_path: Path) -> None:
    def machine(loop: asyncio.AbstractEventLoop) -> StoreMachine:
        return EmbeddedMachine(loop, EmbeddedSubject(Path(tempfile.mkdtemp(dir=tmp_path))))

    await check(machine, examples=40, steps=30)


async def test_etcd_is_the_model(etcd: EtcdCluster) -> None:
    def machine(loop: asyncio.AbstractEventLoop) -> StoreMachine:
        etcd.wipe()
        return StoreMachine(loop, EtcdSubject(etcd))

    await check(machine, examples=12, steps=20)
