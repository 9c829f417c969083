"""What the mesh is on Kubernetes: the only room that knows of it."""
