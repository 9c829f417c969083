"""Real processes that are killed, with SIGKILL, before and after every durable write and every send that they make.

`roles` are the processes, `world` starts them, kills them where it is told, restarts them, and collects the history.
"""
