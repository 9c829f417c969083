"""Keeps the books on the shelf. Several instances, of several versions, share one file: the same stock."""
