"""`remora run`: what stands between a program, its sidecar and the control plane."""
