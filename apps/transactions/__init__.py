"""Transactions across services that survive the death of any process at any moment.

Saga, TCC, two-phase message, outbox and XA, one coordinator, one barrier. `README.md` beside this file says how to use it.
"""
