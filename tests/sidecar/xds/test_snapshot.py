"""The file of the last good configuration: what is read is what was written, or it is refused."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.xds import snapshot
from sidecar.xds.snapshot import BadSnapshot, Part, Snapshot, pack, read, unpack, write

NODE = b"orders-1"
KEPT = Snapshot(1_700_000_000, (Part("type/cluster", "7", (b"one", b"two")), Part("type/routes", "", ())))

parts = st.builds(Part, st.text(max_size=20), st.text(max_size=5), st.lists(st.binary(max_size=40)).map(tuple))


@given(st.binary(max_size=50), st.builds(Snapshot, st.integers(0, 2**40), st.lists(parts, max_size=5).map(tuple)))
def test_what_was_packed_is_unpacked(node: bytes, kept: Snapshot) -> None:
    assert unpack(pack(node, kept), node) == kept


@settings(deadline=None)
@given(st.data())
def test_a_file_that_is_damaged_anywhere_is_refused(data: st.DataObject) -> None:
    packed = pack(NODE, KEPT)
    place = data.draw(st.integers(0, len(packed) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                packed[:place],
                packed[:place] + bytes([packed[place] ^ data.draw(st.integers(1, 255))]) + packed[place + 1 :],
                packed[:place] + b"x" + packed[place:],
            ]
        )
    )
    with pytest.raises(BadSnapshot):
        unpack(damaged, NODE)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no snapshot of a configuration"),
        (b"static_resources: {}\n", "no snapshot of a configuration"),
        (pack(NODE, KEPT).replace(b"format=1", b"format=2"), "of format 2, this release reads 1"),
        (pack(NODE, KEPT)[:-3], "bytes where"),
        (pack(NODE, KEPT).replace(b"two", b"TWO"), "checksum"),
        (pack(NODE, KEPT).replace(b"saved=17", b"saved=18"), "checksum"),
        (pack(b"orders-2", KEPT), "of another node"),
    ],
)
def test_a_refusal_says_why(data: bytes, why: str) -> None:
    with pytest.raises(BadSnapshot, match=why):
        unpack(data, NODE)


def test_the_file_is_its_owners_alone_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "of" / "the" / "node"
    for data in (b"first", b"second"):
        write(path, data)
        assert read(path)[0] == data
    assert [each.name for each in path.parent.iterdir()] == ["node"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_writing_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node"
    write(path, b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, b"second")
    assert read(path)[0] == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["node"]


def test_a_file_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "node"
    write(path, b"mine")
    path.chmod(0o660)
    with pytest.raises(BadSnapshot, match="others may write it"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises((BadSnapshot, IsADirectoryError)):
        read(path)
    path.rmdir()
    os.mkfifo(path)  # reading one would wait for ever
    with pytest.raises(BadSnapshot, match="no file"):
        read(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic"):
        read(tmp_path / "link")


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "node", b"12345")
    monkeypatch.setattr(snapshot, "MAX_BYTES", 4)
    with pytest.raises(BadSnapshot, match="5 bytes; at most 4"):
        read(tmp_path / "node")
