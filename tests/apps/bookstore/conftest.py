"""One open shop for all tests that only buy: they use order ids and readers of their own."""

from collections.abc import Iterator

import pytest

from tests.apps.bookstore.shop import Shop, open_shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with open_shop(tmp_path_factory.mktemp("shop")) as opened:
        yield opened
