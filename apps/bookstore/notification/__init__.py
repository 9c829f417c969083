"""Tells readers what became of their orders: by events, each once in effect."""
