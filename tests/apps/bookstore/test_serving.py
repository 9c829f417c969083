"""How a service starts and stops."""

import socket
from pathlib import Path

import pytest

from apps.bookstore.serving import BadSettings, Settings
from tests.apps.bookstore.shop import running


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"PORT": "http"}, 'PORT: "http" is no port; 0 to 65535 is needed'),
        ({"PORT": "65536"}, 'PORT: "65536" is no port; 0 to 65535 is needed'),
        ({"PORT": "-1"}, 'PORT: "-1" is no port; 0 to 65535 is needed'),
        ({"BOOKSTORE_SYNCHRONOUS": "off"}, 'BOOKSTORE_SYNCHRONOUS: "off" is not known; known: FULL, NORMAL'),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(env: dict[str, str], said: str) -> None:
    with pytest.raises(BadSettings) as error:
        Settings.of(env)
    assert str(error.value) == said


def test_an_empty_environment_is_enough() -> None:
    settings = Settings.of({"PORT": "", "VERSION": ""})
    assert (settings.port, settings.version, settings.synchronous) == (50051, "v1", "FULL")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"PORT": "http"}, 'orders: PORT: "http" is no port; 0 to 65535 is needed'),
        ({"BOOKSTORE_DIR": "/dev/null/shop"}, "orders: /dev/null/shop: not a directory"),
    ],
)
def test_what_keeps_a_service_from_starting_is_one_line(tmp_path: Path, env: dict[str, str], said: str) -> None:
    with running(tmp_path, "orders", **env) as orders:
        assert orders.process.wait(30) == 2
        assert orders.said == f"{said}\n"


def test_a_port_that_is_taken_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with running(tmp_path, "accounts", PORT=str(port)) as accounts:
            assert accounts.process.wait(30) == 2
            assert accounts.said == f"accounts: PORT: {port} of 127.0.0.1 is taken, or may not be used\n"


def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "warehouse.sqlite3").write_text("no database, whatever its name says")
    with running(tmp_path, "warehouse") as warehouse:
        assert warehouse.process.wait(30) == 2
        assert warehouse.said == "warehouse: warehouse.sqlite3: file is not a database\n"


@pytest.mark.parametrize("service", ["orders", "warehouse", "accounts"])
def test_a_stop_is_clean(tmp_path: Path, service: str) -> None:
    with running(tmp_path, service) as program:
        assert program.target
        assert program.stop() == 0
        assert program.said.count("\n") == 1, "nothing but where it listened"
