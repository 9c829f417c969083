"""Ports for programs that listen on them later."""

import socket

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


def test_those_in_use_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "CANDIDATES", range(port, port + 1))
        monkeypatch.setattr(ports, "_are_usual", lambda: True)
        (other,) = ports.free(1)
        assert other != port
