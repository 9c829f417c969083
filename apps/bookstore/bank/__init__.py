"""Somebody else's bank: slow, and not always truthful. It keeps one thing right: its statement."""
