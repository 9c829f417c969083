"""What the mesh costs, measured beside its peers. `python -m benchmarks` is the one command; `docs/benchmarks` shows its last run.

The rows are in `rows`, the aims in `aims`, the programs in `proxies` and `backends`; `run` measures, `report` writes.
"""
