"""Ports for programs that listen on them later."""

import socket
from pathlib import Path

import pytest

from remora.agent import ports


def test_they_differ_and_can_be_listened_on() -> None:
    found = ports.free(50)
    assert len(set(found)) == 50
    for port in found:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))
            each.listen()


def test_the_kernel_does_not_give_them_to_connections() -> None:
    """Where it keeps to its usual range: nobody gets one without asking for it."""
    if not ports._are_usual():
        pytest.skip("this kernel's ephemeral ports reach down to ours")
    assert all(port in ports.CANDIDATES for port in ports.free(50))


def test_who_comes_back_gets_the_same_while_they_are_free(tmp_path: Path) -> None:
    file = tmp_path / "of" / "an instance"
    first = ports.kept(file, 3)
    assert ports.kept(file, 3) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first[1]))
        taken.listen()
        others = ports.kept(file, 3)
    assert first[1] not in others
    assert ports.kept(file, 3) == others


@pytest.mark.parametrize("content", ["", "1 2", "x y z", "70000 70001 70002", "\xff"])
def test_a_file_that_holds_no_ports_is_written_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "ports").write_bytes(content.encode("latin-1"))
    found = ports.kept(tmp_path / "ports", 3)
    assert len(set(found)) == 3 and ports.kept(tmp_path / "ports", 3) == found


def test_where_nothing_can_be_remembered_there_are_ports_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(ports.kept(tmp_path / "file" / "ports", 3)) == 3


def test_those_in_use_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "CANDIDATES", range(port, port + 1))
        monkeypatch.setattr(ports, "_are_usual", lambda: True)
        (other,) = ports.free(1)
        assert other != port
