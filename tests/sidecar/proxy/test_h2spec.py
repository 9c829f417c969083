"""h2spec, which is not ours, against the sidecar's listener: every case of every section, the strict ones too."""

import asyncio
import subprocess
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from tests.differential import engines
from tests.differential.backend import Backend
from tests.ports import free_ports
from tests.sidecar import bootstraps
from tests.tools import need

CASES: Final = 146
"""What h2spec 2.2.1 knows; fewer would mean that some did not run."""


async def test_h2spec_passes_whole_and_strict(tmp_path: Path) -> None:
    h2spec = need("h2spec")
    backend = Backend("a", {})
    await backend.open()
    # Some cases wait for data. An answer before a request's end would close streams that they go on with.
    backend.begin([["ended", {"headers": [":status: 200"]}, {"data": "hello"}, {"trailers": ["grpc-status: 0"]}]])
    [port] = free_ports(1)
    bootstrap = bootstraps.static(
        [bootstraps.listener("main", port, "a", codec_type="HTTP2")], [bootstraps.cluster("a", backend.port)]
    )
    engine = engines.start("remora", bootstrap, [port], tmp_path)
    report = tmp_path / "report.xml"
    try:
        process = await asyncio.create_subprocess_exec(
            *(h2spec, "--strict", "--port", str(port), "--junit-report", str(report)),
            stdout=subprocess.DEVNULL,
        )
        await asyncio.wait_for(process.wait(), 60)
        assert engine.is_running
    finally:
        engine.stop()
        backend.close()
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('package')} {case.get('classname')}: {[each.text for each in case]}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None or case.find("skipped") is not None
    ]
    assert not failed, "\n".join(failed)
    assert len(cases) == CASES
