"""What the control plane costs as the mesh grows: from a change to the last node's ACK, beside go-control-plane.

`python -m benchmarks.control` is the one command; `docs/benchmarks/control.md` shows its last run. The rows are in `rows`, the aims in
`aims`; `dataplane` is what a simulated node does, `simulator` the program that runs many, `planes` what they are connected to.
"""

import os

# Before gRPC is imported: its fork handlers start threads in the child, which would die on the descriptors that are closed before exec.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
