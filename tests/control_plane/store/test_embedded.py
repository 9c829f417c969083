"""What only the embedded store promises: it survives its process, is of one process, and never touches what is newer."""

import asyncio
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from control_plane.store.contract import (
    Compacted,
    Delete,
    LeaseNotFound,
    Put,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
)
from control_plane.store.embedded import FILE, FORMAT, RESTART_GRACE_S, EmbeddedStore
from control_plane.store.embedded_content import MAX_HISTORY_BYTES, MAX_HISTORY_EVENTS
from tests.control_plane.store import writer
from tests.control_plane.store.subject import EmbeddedSubject, put, take

pytestmark = pytest.mark.asyncio(loop_scope="session")

# -- kill -9 ----------------------------------------------------------------------------------------

ROUNDS = 8


def _start_writer(directory: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", writer.__name__, str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)


async def test_nothing_acknowledged_is_lost_to_kill_9_at_any_moment(tmp_path: Path) -> None:
    """A process writes and says what was acknowledged, and is killed; the next one goes on where it was. The seed is in the failure."""
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    told = 0
    for _ in range(ROUNDS):
        process = _start_writer(tmp_path)
        assert process.stdout is not None
        with process.stdout as lines:
            # Some rounds die in the first write, some after hundreds. The writer does not wait for us, so it is anywhere.
            for _ in range(chance.choice([1, 2, 3, 10, 100, 300])):
                told = int(lines.readline())
            process.kill()
            process.wait()
            whole = lines.read().rpartition(b"\n")[0]
            told = max([told, *map(int, whole.split())])
        store = await EmbeddedStore.open(tmp_path)
        try:
            await writer.check(store, told)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        finally:
            await store.close()


# -- one process ------------------------------------------------------------------------------------


async def test_a_store_that_another_process_has_open_is_refused_and_its_owner_named(tmp_path: Path) -> None:
    process = _start_writer(tmp_path)
    assert process.stdout is not None
    with process.stdout as lines:
        lines.readline()
        with pytest.raises(
            StoreLocked, match=rf"is open in another process \(pid {process.pid}\); stop it or use another"
        ):
            await EmbeddedStore.open(tmp_path)
        process.kill()
        process.wait()
    store = await EmbeddedStore.open(tmp_path)
    await store.close()


async def test_a_store_is_free_again_once_it_is_closed(embedded_subject: EmbeddedSubject) -> None:
    with pytest.raises(StoreLocked):
        await EmbeddedStore.open(embedded_subject.directory)
    await embedded_subject.open()


# -- what it refuses to open ------------------------------------------------------------------------


async def test_a_file_of_a_newer_release_is_refused_and_not_touched(tmp_path: Path) -> None:
    """Not even what a crash left in the write-ahead log is moved: it may be for the newer release to read."""
    store = await EmbeddedStore.open(tmp_path / "store")
    await put(store, b"a", b"1")
    await store.close()
    crashed = tmp_path / "crashed"
    with closing(sqlite3.connect(tmp_path / "store" / FILE, isolation_level=None)) as newer:
        newer.execute("UPDATE meta SET value=? WHERE name='format'", (FORMAT + 1,))
        newer.execute("CREATE TABLE invented (later)")
        shutil.copytree(tmp_path / "store", crashed, ignore=shutil.ignore_patterns("*-shm", "lock"))
    files = [crashed / FILE, crashed / f"{FILE}-wal"]
    before = [file.read_bytes() for file in files]
    assert before[1], "the log is empty: this test would prove nothing"
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"newer release \(format {FORMAT + 1}, this one reads {FORMAT}\)"):
            await EmbeddedStore.open(crashed)
        assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("content", [b"", b"this is no database, but it is long enough to be taken for one" * 20])
async def test_a_file_that_is_no_store(tmp_path: Path, content: bytes) -> None:
    """An empty file is what a crash in the very first moment leaves."""
    (tmp_path / FILE).write_bytes(content)
    if content:
        with pytest.raises(StoreError, match="not a database"):
            await EmbeddedStore.open(tmp_path)
        assert (tmp_path / FILE).read_bytes() == content
    else:
        store = await EmbeddedStore.open(tmp_path)
        assert await put(store, b"a") == 1
        await store.close()


async def test_a_directory_that_cannot_be_is_a_plain_sentence(tmp_path: Path) -> None:
    (tmp_path / "File").write_bytes(b"")
    with pytest.raises(StoreError, match=r"^store .*File/below: not a directory$"):
        await EmbeddedStore.open(tmp_path / "File" / "below")


# -- leases over a restart --------------------------------------------------------------------------


async def test_after_a_restart_leases_have_their_full_time_and_a_grace(embedded_subject: EmbeddedSubject) -> None:
    lease = await embedded_subject.store.grant(10)
    await put(embedded_subject.store, b"a", b"", lease)
    await embedded_subject.pass_time(9)
    await embedded_subject.open()
    await embedded_subject.pass_time(10 + RESTART_GRACE_S - 0.5)
    assert await embedded_subject.store.get(b"a") is not None
    await embedded_subject.pass_time(1)
    assert await embedded_subject.store.get(b"a") is None


async def test_a_lease_lasts_exactly_its_time_after_the_last_keep_alive(embedded_subject: EmbeddedSubject) -> None:
    store = embedded_subject.store
    lease = await store.grant(10)
    await embedded_subject.pass_time(9.5)
    assert await store.keep_alive(lease) == 10
    await embedded_subject.pass_time(9.5)
    assert await store.keep_alive(lease) == 10
    await embedded_subject.pass_time(10)
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease)


async def test_leases_end_by_themselves(tmp_path: Path) -> None:
    """With the real clock, and nobody who asks."""
    store = await EmbeddedStore.open(tmp_path)
    lease = await store.grant(5)
    revision = await put(store, b"a", b"", lease)
    assert [event.revision for event in await take(store.watch(b"", revision + 1), 1)] == [revision + 1]
    await store.close()


async def test_many_leases_that_end_at_once_cost_one_commit(embedded_subject: EmbeddedSubject) -> None:
    """As after a cut network: the writer must not be busy with them one by one."""
    store = embedded_subject.store
    for number in range(50):
        await put(store, b"%d" % number, b"", await store.grant(10))
    commits: list[str] = []
    assert store._db is not None
    store._db.set_trace_callback(commits.append)
    await embedded_subject.pass_time(10)
    assert (await store.range(b"")).items == ()
    assert commits.count("COMMIT") == 1


# -- limits -----------------------------------------------------------------------------------------


async def test_history_is_bounded_in_events(embedded_subject: EmbeddedSubject) -> None:
    store = embedded_subject.store
    ops = [Put(b"%d" % number, b"") for number in range(100)]
    behind = store.watch(b"", 1)
    await take(behind, 0)
    for _ in range(MAX_HISTORY_EVENTS // 100 + 2):
        await store.txn((), ops)
    with pytest.raises(Compacted):
        await anext(behind)
    assert len(await take(store.watch(b"", 3), MAX_HISTORY_EVENTS)) == MAX_HISTORY_EVENTS


async def test_history_is_bounded_in_bytes(embedded_subject: EmbeddedSubject) -> None:
    store = embedded_subject.store
    count = MAX_HISTORY_BYTES // 1_000_000 + 2
    for _ in range(count):
        last = await put(store, b"a", b"x" * 1_000_000)
    with pytest.raises(Compacted) as raised:
        await take(store.watch(b"", 1), 1)
    assert 1 <= raised.value.revision < last - MAX_HISTORY_BYTES // 1_100_000


async def test_a_full_disk_is_said_and_when_there_is_room_again_the_store_goes_on(tmp_path: Path) -> None:
    """The kernel refuses to let files grow, as a full disk does."""
    store = await EmbeddedStore.open(tmp_path)
    first = await put(store, b"a", b"1")
    lease = await store.grant(60)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises((StoreFull, StoreUnavailable)):
            await put(store, b"a", b"2" * 500_000)
        found = await store.get(b"a")
        assert found is not None and (found.value, found.mod_revision) == (b"1", first)
        assert await store.keep_alive(lease) == 60
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await put(store, b"a", b"3" * 500_000) == first + 1
    await store.revoke(lease)
    await store.close()
    store = await EmbeddedStore.open(tmp_path)
    assert (await store.range(b"")).revision == first + 1
    await store.close()


async def test_leases_end_late_rather_than_never_when_the_disk_is_full_meanwhile(
    embedded_subject: EmbeddedSubject,
) -> None:
    store = embedded_subject.store
    await put(store, b"a", b"", await store.grant(10))
    assert store._db is not None
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreFull, match="full"):
        await put(store, b"b", b"x" * 100_000)
    store._db.execute("PRAGMA query_only=1")
    embedded_subject.clock.now += 10
    with pytest.raises(StoreUnavailable):
        await store.expire_due()
    assert await store.get(b"a") is not None
    store._db.execute("PRAGMA query_only=0")
    await store.expire_due()
    assert await store.get(b"a") is None


async def test_deleting_and_putting_in_one_commit_is_durable_in_its_order(embedded_subject: EmbeddedSubject) -> None:
    """Writes that go together into one commit are still one after the other."""
    store = embedded_subject.store
    await asyncio.gather(
        put(store, b"a", b"1"),
        store.txn((), [Delete(b"a")]),
        put(store, b"a", b"2"),
        put(store, b"b", b"1"),
        store.txn((), [Delete(b"b")]),
    )
    before = await store.range(b"")
    assert [(item.key, item.value) for item in before.items] == [(b"a", b"2")]
    await embedded_subject.open()
    assert await embedded_subject.store.range(b"") == before
