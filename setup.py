"""Compiles the sidecar's hot modules with mypyc: `make compile`.

Only that: what the package is stands in pyproject.toml. The sources stay plain Python and run as such wherever this was not done;
`sidecar/compiled.py` says when the compiled ones are used.
"""

import sys

from setuptools import setup

HOT = [
    "sidecar/http2/connection.py",
    "sidecar/http2/frames.py",
    "sidecar/http2/headers.py",
    "sidecar/http2/huffman.py",
    "sidecar/policy/admission.py",
    "sidecar/policy/balance.py",
    "sidecar/policy/breaker.py",
    "sidecar/policy/checking.py",
    "sidecar/policy/gradient.py",
    "sidecar/policy/hashing.py",
    "sidecar/policy/spread.py",
    "sidecar/policy/limiting/concurrency.py",
    "sidecar/policy/limiting/gcra.py",
    "sidecar/policy/limiting/keyed.py",
    "sidecar/policy/limiting/leaky_bucket.py",
    "sidecar/policy/limiting/limiter.py",
    "sidecar/policy/limiting/sliding_window.py",
    "sidecar/policy/limiting/token_bucket.py",
    "sidecar/policy/outlier.py",
    "sidecar/policy/retry.py",
    "sidecar/proxy/attempts.py",
    "sidecar/proxy/access_filter.py",
    "sidecar/proxy/breaking.py",
    "sidecar/proxy/call.py",
    "sidecar/proxy/cluster.py",
    "sidecar/proxy/copies.py",
    "sidecar/proxy/decision.py",
    "sidecar/proxy/direct.py",
    "sidecar/proxy/edit.py",
    "sidecar/proxy/downstream.py",
    "sidecar/proxy/fault.py",
    "sidecar/proxy/filters.py",
    "sidecar/proxy/hedge.py",
    "sidecar/proxy/limit.py",
    "sidecar/proxy/outlier.py",
    "sidecar/proxy/mirror.py",
    "sidecar/proxy/shedding.py",
    "sidecar/proxy/step.py",
    "sidecar/proxy/timers.py",
    "sidecar/proxy/upstream.py",
    "sidecar/proxy/worker.py",
    "sidecar/telemetry/stats.py",
]

if "build_ext" in sys.argv:
    from mypyc.build import mypycify

    setup(ext_modules=mypycify(HOT, opt_level="3", debug_level="0", group_name="remora_sidecar"))
else:
    setup()
