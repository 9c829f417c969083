"""A file with a secret: whole or not at all, for its owner only."""

import os
from pathlib import Path

import pytest

from control_plane.identity import secret_file


def test_only_the_owner_reads_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        secret_file.write(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_new_one_takes_the_place_of_the_old_one_and_of_what_a_dead_process_left(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    (tmp_path / f".key.{os.getpid()}").write_bytes(b"half of a")
    secret_file.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_put_in_place_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(IsADirectoryError):
        secret_file.write(tmp_path / "key", b"secret")
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]
