"""Readers who buy: a seeded load generator."""
