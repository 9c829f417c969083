"""What the control plane costs as the mesh grows: from a change to the last node's ACK, beside go-control-plane.

`python -m benchmarks.control` is the one command; `docs/benchmarks/control.md` shows its last run. The rows are in `rows`, the aims in
`aims`; `dataplane` is what a simulated node does, `simulator` the program that runs many, `planes` what they are connected to.
"""
