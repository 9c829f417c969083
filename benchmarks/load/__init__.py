"""Load: `h2load` where it can make it, and where it cannot (headers that differ, streams, a fixed rate) a generator on raw frames.

The generator is a program of its own, `python -m benchmarks.load`, so that its work is in no process that is measured. It shares no code with
the sidecar: a fault of one cannot hide in the other.
"""
