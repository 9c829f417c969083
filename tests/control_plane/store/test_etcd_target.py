"""What a target says, and how a wrong one is refused."""

from pathlib import Path

import pytest

from control_plane.store import open_store, shown
from control_plane.store.contract import BadTarget
from control_plane.store.etcd_target import Target, Tls, parse

PEM = b"-----BEGIN CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("etcd://a:2379", Target(("a:2379",))),
        ("etcd://127.0.0.1:1,etcd-1.etcd:2,[::1]:3/", Target(("127.0.0.1:1", "etcd-1.etcd:2", "[::1]:3"))),
        ("etcd://me:secret@a:1,b:2", Target(("a:1", "b:2"), "me", "secret")),
        ("etcd://m%40e:s%3Ae%2Fc%3Fr%40et@a:1", Target(("a:1",), "m@e", "s:e/c?r@et")),
    ],
)
def test_a_target_is_read(text: str, expected: Target) -> None:
    assert parse(text, {}) == expected


@pytest.mark.parametrize(
    ("text", "user", "password"),
    [("etcd://a:1", "me", "secret"), ("etcd://you@a:1", "you", "secret"), ("etcd://you:own@a:1", "you", "own")],
)
def test_the_environment_stands_in_for_what_the_target_does_not_say(text: str, user: str, password: str) -> None:
    target = parse(text, {"REMORA_ETCD_USER": "me", "REMORA_ETCD_PASSWORD": "secret"})
    assert (target.user, target.password) == (user, password)


def test_options_name_files(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_bytes(PEM + name.encode())
    files = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    assert parse(f"etcd://a:1?ca={files['ca']}", {}).tls == Tls(PEM + b"ca")
    query = "&".join(f"{name}={path}" for name, path in files.items())
    assert parse(f"etcd://a:1?{query}&server-name=etcd", {}).tls == Tls(
        PEM + b"ca", PEM + b"cert", PEM + b"key", "etcd"
    )


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("", "'' is not HOST:PORT"),
        ("a", "'a' is not HOST:PORT"),
        ("a:1,", "'' is not HOST:PORT"),
        ("a:0", "'a:0' is not HOST:PORT"),
        ("a:65536", "'a:65536' is not HOST:PORT"),
        ("a:²", "'a:²' is not HOST:PORT"),
        ("::1:2379", "brackets"),
        ("a:1/path", "is not HOST:PORT"),
        ("a:1,b:2,a:1", "one endpoint stands twice"),
        ("me@a:1", "user me has no password; set REMORA_ETCD_PASSWORD"),
        (":secret@a:1", "a password without a user; set REMORA_ETCD_USER"),
        ("a:1?insecure=1", "unknown option 'insecure'; known are ca, cert, key, server-name"),
        ("a:1?ca=", "option 'ca' is empty"),
        ("a:1?ca", "option 'ca' is empty"),
        ("a:1?ca=CA&ca=CA", "one option stands twice"),
        ("a:1?cert=CA&key=CA", "option 'cert' needs 'ca'"),
        ("a:1?server-name=x", "option 'server-name' needs 'ca'"),
        ("a:1?ca=CA&cert=CA", "'cert' and 'key' come together"),
        ("a:1?ca=/does/not/exist", "option 'ca': /does/not/exist: No such file"),
        ("a:1?ca=NOT", "is not a PEM file"),
    ],
)
async def test_a_wrong_target_is_refused_by_name(rest: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "ca").write_bytes(PEM)
    (tmp_path / "not").write_bytes(b"\0\1")
    rest = rest.replace("CA", str(tmp_path / "ca")).replace("NOT", str(tmp_path / "not"))
    with pytest.raises(BadTarget) as raised:
        await open_store(f"etcd://{rest}")
    assert says in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_target_is_shown_without_its_user() -> None:
    assert shown("etcd://me:secret@a:1,b:2?ca=/x@y") == "etcd://a:1,b:2?ca=/x@y"
    assert shown("etcd://a:1?ca=/x@y") == "etcd://a:1?ca=/x@y"
    assert shown("/var/lib/x@y") == "/var/lib/x@y"
    assert "secret" not in repr(Target(("a:1",), "me", "secret", Tls(PEM, PEM, b"secret")))
