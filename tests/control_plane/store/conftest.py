"""The stores under test: what they have in common is in `Subject`.

The tests share one event loop: grpc.aio's queue of completions belongs to the process, and is disturbed when a loop goes away.
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from control_plane.store.embedded import EmbeddedStore
from control_plane.store.etcd import EtcdStore
from tests.control_plane.store.subject import EmbeddedSubject, EtcdSubject, Subject
from tests.etcd import EtcdCluster, etcd_cluster


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One etcd for all tests; ask for `etcd_store` or `subject`, which begin with an empty one."""
    with etcd_cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def embedded_subject(tmp_path: Path) -> AsyncIterator[EmbeddedSubject]:
    subject = EmbeddedSubject(tmp_path / "store")
    await subject.open()
    yield subject
    await subject.close()


@pytest_asyncio.fixture(loop_scope="session")
async def etcd_subject(etcd: EtcdCluster) -> AsyncIterator[EtcdSubject]:
    etcd.wipe()
    subject = EtcdSubject(etcd)
    await subject.open()
    yield subject
    await subject.close()


@pytest.fixture(params=["embedded", "etcd"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each test that asks for it runs on both stores."""
    found = request.getfixturevalue(f"{request.param}_subject")
    assert isinstance(found, EmbeddedSubject | EtcdSubject)
    return found


@pytest.fixture
def store(subject: Subject) -> EmbeddedStore | EtcdStore:
    return subject.store
