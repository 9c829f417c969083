"""Keeps what merchants have earned, and has a bank pay it out: one that is slow, and sometimes lies."""
