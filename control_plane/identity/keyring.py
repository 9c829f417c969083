"""The authorities' keys in files that only their owner can read, one folder for each root.

    DIR/ROOT-FINGERPRINT/root.pem           the root
    DIR/ROOT-FINGERPRINT/root.key           its key; may be kept elsewhere: then the intermediate is all there is
    DIR/ROOT-FINGERPRINT/intermediate.pem   what signs leaves, and the way up to the root
    DIR/ROOT-FINGERPRINT/intermediate.key
    DIR/next/root.pem, root.key             put there by hand: the root that the next change leads to

Replicas of a control plane that share a folder (or copies of it) sign alike.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from control_plane.identity import secret_file
from control_plane.identity.authority import (
    INTERMEDIATE_LIFE,
    Authority,
    BadAuthority,
    fingerprint,
    load,
    new_root,
    pem,
)


class KeyringError(Exception):
    """The folder or a file in it cannot be used; the text says which and why."""


class Keyring:
    """A folder of authorities."""

    def __init__(self, directory: Path, intermediate_life: timedelta = INTERMEDIATE_LIFE) -> None:
        """Raises KeyringError if the folder cannot be made, or others can read it."""
        self.directory = directory
        self._intermediate_life = intermediate_life
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = directory.stat()
        except OSError as error:
            raise KeyringError(f"{directory}: {(error.strerror or str(error)).lower()}") from None
        if found.st_mode & 0o077 and found.st_uid == os.getuid():
            directory.chmod(0o700)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One replica of a machine at a time: two that start together make one root."""
        with (self.directory / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def roots(self) -> list[str]:
        """Fingerprints of the roots that are here."""
        return sorted(
            each.name for each in self.directory.iterdir() if each.name != "next" and (each / "root.pem").exists()
        )

    def create(self, trust_domain: str, now: datetime) -> Authority:
        """A new root, kept here."""
        return self.add(new_root(trust_domain, now))

    def add(self, authority: Authority) -> Authority:
        """Keep an authority: a root, or an intermediate whose root's key is elsewhere."""
        folder = self.directory / fingerprint(authority.root)
        folder.mkdir(mode=0o700, exist_ok=True)
        if authority.is_due:
            _write(folder / "root.key", authority.key_pem())
        else:
            self._keep(folder, authority)
        _write(folder / "root.pem", pem(authority.root))  # last: a folder with it is whole
        return authority

    def take_next(self) -> Authority | None:
        """The root that the user wants next, from then on kept as all are; None if there is none. Raises KeyringError."""
        folder = self.directory / "next"
        if not (folder / "root.pem").exists():
            return None
        taken = self.add(_load(folder / "root.pem", folder / "root.key"))
        for name in ("root.pem", "root.key"):
            (folder / name).unlink()
        return taken

    @staticmethod
    def _keep(folder: Path, authority: Authority) -> None:
        _write(folder / "intermediate.key", authority.key_pem())
        _write(folder / "intermediate.pem", b"".join(map(pem, authority.chain)))

    def root(self, name: str) -> Authority | None:
        """A root with its key; None if the key is not here. Raises KeyringError."""
        folder = self.directory / name
        if not (folder / "root.key").exists():
            return None
        return _load(folder / "root.pem", folder / "root.key")

    def certificate(self, name: str) -> bytes:
        """A root's certificate, PEM. Raises KeyringError."""
        return _read(self.directory / name / "root.pem")

    def signing(self, name: str, now: datetime, *, fresh: bool = False) -> Authority:
        """What signs leaves under a root, made or renewed if it is time (or `fresh`). Raises KeyringError."""
        with self.locked():  # certificate and key are two files
            return self._signing(name, now, fresh=fresh)

    def _signing(self, name: str, now: datetime, *, fresh: bool) -> Authority:
        folder = self.directory / name
        chain, key = folder / "intermediate.pem", folder / "intermediate.key"
        known = None
        if chain.exists() and key.exists():
            known = _load(chain, key)
        root = self.root(name)
        if known is not None and not fresh and (root is None or not known.is_half_over(now)):
            return known
        if root is None:
            raise KeyringError(f"{folder}: there is no key of the root {name[:16]}, so nothing can be signed under it")
        made = root.intermediate(now, self._intermediate_life)
        self._keep(folder, made)
        return made


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyringError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _load(chain: Path, key: Path) -> Authority:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise KeyringError(f"{key}: {(error.strerror or str(error)).lower()}") from None
    if mode & 0o077:
        raise KeyringError(f"{key}: others can read it (mode {mode & 0o777:o}); chmod 600, or make another")
    try:
        return load(_read(chain), _read(key))
    except BadAuthority as error:
        raise KeyringError(f"{chain}: {error}") from None


def _write(path: Path, data: bytes) -> None:
    try:
        secret_file.write(path, data)
    except OSError as error:
        raise KeyringError(f"{path}: {(error.strerror or str(error)).lower()}") from None
