"""Real etcd, one member or three, on free ports of the loopback interface, that tests may kill, stop and start again.

with etcd_cluster(directory, size=3) as etcd:
    store = await EtcdStore.open(etcd.target)
    etcd.leader().kill()
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.ports import free_ports
from tests.tools import find, need
from tests.waiting import eventually

START_S: Final = 20.0
START_ATTEMPTS: Final = 3
"""A port that was free may be taken when etcd gets there."""


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, the members' certificate (for 127.0.0.1 and etcd.test), a client's."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    @property
    def options(self) -> str:
        """For the target of a store."""
        return f"?ca={self.ca}&cert={self.client_cert}&key={self.client_key}"


def make_certificates(directory: Path, client_name: str = "remora") -> Certificates:
    """A fresh authority and what it signs, made with openssl."""
    openssl = need("openssl")
    directory.mkdir(parents=True, exist_ok=True)

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True, cwd=directory)

    def make(name: str, subject: str, extensions: str) -> None:
        (directory / f"{name}.ext").write_text(extensions)
        run(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            f"{name}.key",
            "-subj",
            f"/CN={subject}",
            "-out",
            f"{name}.csr",
        )
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip

    run(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-subj",
        "/CN=test authority",
        "-days",
        "2",
        "-out",
        "ca.pem",
    )
    make("server", "etcd", "subjectAltName=IP:127.0.0.1,DNS:etcd.test\nextendedKeyUsage=serverAuth,clientAuth\n")
    make("client", client_name, "extendedKeyUsage=clientAuth\n")
    return Certificates(
        *(directory / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key"))
    )


class EtcdMember:
    """One process; `start` after `kill` is the same member with the same data."""

    def __init__(self, name: str, directory: Path, certificates: Certificates | None) -> None:
        self.name = name
        self.client_port, self.peer_port, self.health_port = free_ports(3)
        self.directory = directory / name
        self._certificates = certificates
        self._command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def scheme(self) -> str:
        return "https" if self._certificates else "http"

    def prepare(self, cluster: Sequence["EtcdMember"], flags: Sequence[str]) -> None:
        """What `start` runs."""
        client, peer = f"{self.scheme}://{self.endpoint}", f"http://127.0.0.1:{self.peer_port}"
        # A lone member needs no time to find out that nobody else wants to lead.
        beat = ("20", "200") if len(cluster) == 1 else ("100", "1000")
        tls = self._certificates
        setpriv = find("setpriv")
        self._command = [
            # So that it does not outlive a test run that is killed.
            *((setpriv, "--pdeathsig", "KILL") if setpriv else ()),
            need("etcd"), "--name", self.name, "--data-dir", str(self.directory),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--listen-metrics-urls", f"http://127.0.0.1:{self.health_port}",
            "--initial-cluster", ",".join(f"{each.name}=http://127.0.0.1:{each.peer_port}" for each in cluster),
            "--initial-cluster-token", str(self.directory.parent),
            "--heartbeat-interval", beat[0], "--election-timeout", beat[1],
            "--logger", "zap", "--log-level", "warn",
            *(("--cert-file", str(tls.server_cert), "--key-file", str(tls.server_key),
               "--trusted-ca-file", str(tls.ca), "--client-cert-auth") if tls else ()),
            *flags,
        ]  # fmt: skip

    def start(self) -> None:
        """Start, or start again; does not wait."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_healthy(self) -> bool:
        """Whether it has a quorum, by its own word."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/health", timeout=2) as response:
                return bool(json.load(response)["health"] == "true")
        except (OSError, ValueError):
            return False

    def kill(self) -> None:
        """SIGKILL, also to one that is stopped."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # until it has stopped

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def post(self, path: str, body: dict[str, Any] | None = None, token: str = "") -> Any:
        """A call of the JSON gateway, for what the store itself never does. Without TLS only."""
        request = urllib.request.Request(
            f"http://{self.endpoint}/v3/{path}",
            json.dumps(body or {}).encode(),
            {"Authorization": token} if token else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None


class EtcdCluster:
    """Some members, started together."""

    def __init__(self, directory: Path, size: int, certificates: Certificates | None, flags: Sequence[str]) -> None:
        self.certificates = certificates
        self.members = [EtcdMember(f"m{number}", directory, certificates) for number in range(size)]
        for member in self.members:
            member.prepare(self.members, flags)

    @property
    def target(self) -> str:
        """For `open_store` and `remora up --store`."""
        return self.target_as("")

    def target_as(self, user_info: str) -> str:
        """The same with `USER:PASSWORD@`."""
        hosts = ",".join(member.endpoint for member in self.members)
        return f"etcd://{user_info}{hosts}{self.certificates.options if self.certificates else ''}"

    def start(self) -> None:
        """Start what does not run; returns when every member is healthy."""
        for member in self.members:
            if not member.is_running:
                member.start()
        eventually(
            lambda: all(member.is_healthy for member in self.members) or not self.is_running,
            timeout_s=START_S,
            message=f"etcd does not start; see {self.members[0].log}",
        )

    @property
    def is_running(self) -> bool:
        return all(member.is_running for member in self.members)

    def stop(self) -> None:
        """Kill everything."""
        for member in self.members:
            member.kill()

    def post(self, path: str, body: dict[str, Any] | None = None, token: str = "") -> Any:
        return self.members[0].post(path, body, token)

    def leader(self) -> EtcdMember:
        """The member that the others follow."""

        def found() -> EtcdMember | None:
            for member in self.members:
                if member.is_running:
                    status = member.post("maintenance/status")
                    if status.get("leader") == status["header"]["member_id"]:
                        return member
            return None

        member = eventually(found)
        assert member is not None
        return member

    def followers(self) -> list[EtcdMember]:
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def wipe(self) -> None:
        """Delete all keys, end all leases: a test that shares the cluster begins with nothing but a revision."""
        for lease in self.post("lease/leases").get("leases", ()):
            self.post("lease/revoke", {"ID": lease["ID"]})
        self.post("kv/deleterange", {"key": _b64(b"\0"), "range_end": _b64(b"\0")})

    def disarm(self) -> None:
        """End all alarms, as an operator does once there is room again."""
        for alarm in self.post("maintenance/alarm", {"action": "GET"}).get("alarms", ()):
            self.post("maintenance/alarm", {"action": "DEACTIVATE", **alarm})

    def enable_users(self, user: str, password: str, prefix: bytes) -> None:
        """Turn authentication on: root, with password `root`, and a user that may read and write under a prefix."""
        self.post("auth/user/add", {"name": "root", "password": "root"})
        self.post("auth/user/grant", {"user": "root", "role": "root"})
        self.post("auth/user/add", {"name": user, "password": password})
        self.post("auth/role/add", {"name": "keys"})
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        permission = {"permType": "READWRITE", "key": _b64(prefix), "range_end": _b64(end)}
        self.post("auth/role/grant", {"name": "keys", "perm": permission})
        self.post("auth/user/grant", {"user": user, "role": "keys"})
        self.post("auth/enable")


@contextmanager
def etcd_cluster(
    directory: Path, size: int = 1, *, certificates: Certificates | None = None, flags: Sequence[str] = ()
) -> Iterator[EtcdCluster]:
    """A healthy cluster as long as the context lasts; skips the test if there is no etcd."""
    for attempt in range(START_ATTEMPTS):
        cluster = EtcdCluster(directory / f"etcd-{attempt}", size, certificates, flags)
        try:
            cluster.start()
            if not cluster.is_running:
                log = cluster.members[0].log
                assert attempt + 1 < START_ATTEMPTS, f"etcd ended at once: {log.read_text()[-2000:]}"
                continue
            yield cluster
            return
        finally:
            cluster.stop()
            shutil.rmtree(directory / f"etcd-{attempt}", ignore_errors=True)


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()
