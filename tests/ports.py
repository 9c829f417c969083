"""Free loopback ports, the way `remora run` finds them: those of the kernel's own range go to whoever connects next."""

from remora.agent.ports import free as free_ports

__all__ = ["free_ports"]
