"""Keeps the last good configuration on disk, so that a sidecar starts and serves while no control plane can be reached.

It is written after it is in force, at most once a second, in a thread: the data path never waits for the disk. While the control
plane is connected and has nothing new, only the file's time is renewed: it says until when the content was known to be current.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, time
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sidecar.xds.snapshot import BadSnapshot, Part, Snapshot, pack, read, unpack, write

log = logging.getLogger("remora.xds")

PAUSE_S: Final = 1.0
"""At least between two writings…"""
SHARE: Final = 20
"""… and so many times as long as the last one took."""
CONFIRM_S: Final = 10.0
"""While it is current, the file's time is renewed so often."""

Parts = Callable[[], tuple[Part, ...]]


class Keeper:
    """One file for one node. `run` keeps it; `restore` reads it."""

    def __init__(self, path: Path, node: bytes, is_connected: Callable[[], bool], pause_s: float = PAUSE_S) -> None:
        self.path = path
        self.saved_at: int | None = None
        """Unix seconds of the content's last change; None if there is no file that can be used."""
        self.is_in_force = False
        """The configuration in force came from the file, and no control plane has confirmed or replaced it since."""
        self.failures = 0
        """Writings that failed."""
        self._node = node
        self._is_connected = is_connected
        self._pause_s = pause_s
        self._confirmed_at = 0.0
        self._written: tuple[Part, ...] = ()
        self._waiting: Parts | None = None
        self._latest: Parts | None = None
        self._disk = threading.Lock()
        self._news = asyncio.Event()
        self._last_fault = ""

    @property
    def age_s(self) -> float:
        """Seconds since the content was known to be current; 0 while it is."""
        if self.saved_at is None or (self._is_connected() and not self.is_in_force):
            return 0.0
        return max(0.0, time() - self._confirmed_at)

    # -- reading ------------------------------------------------------------------------------------

    async def restore(self) -> Snapshot | None:
        """What is kept, or None: that there is none is no fault, that it cannot be used is logged."""
        try:
            data, self._confirmed_at = await asyncio.to_thread(read, self.path)
            found = await asyncio.to_thread(unpack, data, self._node)
        except FileNotFoundError:
            return None
        except BadSnapshot as error:
            self.refuse(str(error))
            return None
        except OSError as error:
            self.refuse((error.strerror or str(error)).lower())
            return None
        self.saved_at = found.saved_at
        return found

    def refuse(self, why: str) -> None:
        """Say that the file is not used; it stays as it is until there is something better."""
        self.saved_at = None
        log.error("the kept configuration %s is not used: %s; waiting for the control plane", self.path, why)

    # -- writing ------------------------------------------------------------------------------------

    def keep(self, parts: Parts) -> None:
        """A new configuration is in force; it is written soon. `parts` is asked then."""
        self.is_in_force = False
        self._waiting = self._latest = parts
        self._news.set()

    async def run(self) -> None:
        """Write what is to be kept, for ever; when cancelled, what still waits."""
        try:
            while True:
                try:
                    async with asyncio.timeout(CONFIRM_S):
                        await self._news.wait()
                except TimeoutError:
                    self._confirm()
                    continue
                took_s = await self._write_waiting()
                await asyncio.sleep(max(self._pause_s, took_s * SHARE))
        finally:
            await self._write_waiting()

    async def _write_waiting(self) -> float:
        """Seconds that it took."""
        self._news.clear()
        if self._waiting is None:
            return 0.0
        parts, self._waiting = self._waiting(), None
        if parts == self._written:
            self._confirm()
            return 0.0
        begin, now = monotonic(), int(time())
        try:
            await asyncio.to_thread(self._write, Snapshot(now, parts))
        except asyncio.CancelledError:
            self._waiting = self._waiting or (lambda: parts)  # it may not have begun
            raise
        except OSError as error:
            self._written = ()
            self._failed(error)
        else:
            self._written, self.saved_at, self._confirmed_at, self._last_fault = parts, now, float(now), ""
        return monotonic() - begin

    def _write(self, snapshot: Snapshot) -> None:
        with self._disk:  # a writing that was cancelled still goes on in its thread
            write(self.path, pack(self._node, snapshot))

    def _confirm(self) -> None:
        if self.saved_at is None or self.is_in_force or not self._is_connected():
            return
        self._confirmed_at = time()
        try:
            os.utime(self.path)
        except OSError as error:
            self._failed(error)
            self._written = ()  # somebody took it away
            if self._latest is not None:
                self.keep(self._latest)

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        fault = (error.strerror or str(error)).lower()
        if fault != self._last_fault:
            log.warning("the configuration cannot be kept in %s: %s", self.path, fault)
        self._last_fault = fault

    # -- what is shown ------------------------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """For the admin endpoint."""
        return {
            "file": str(self.path),
            "savedAt": self.saved_at,
            "ageS": round(self.age_s, 1) if self.saved_at is not None else None,
            "isInForce": self.is_in_force,
            "writeFailures": self.failures,
        }


class KeeperCollector(Collector):
    """The same for prometheus-client."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def collect(self) -> Iterator[Metric]:
        keeper = self._keeper
        yield GaugeMetricFamily(
            "remora_snapshot_in_force",
            "1 while the configuration in force is the one that was kept on disk, not yet confirmed by a control plane.",
            value=float(keeper.is_in_force),
        )
        if keeper.saved_at is not None:
            yield GaugeMetricFamily(
                "remora_snapshot_age_seconds",
                "Since the configuration that is kept on disk was known to be current; 0 while it is.",
                value=keeper.age_s,
            )
        yield CounterMetricFamily(
            "remora_snapshot_write_failures", "Configurations that could not be kept on disk.", value=keeper.failures
        )
