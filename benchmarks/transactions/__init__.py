"""What a transaction costs: our coordinator beside DTM's, and the bookstore's five ways.

`python -m benchmarks.transactions`, or `make bench-transactions`. Both coordinators keep their log in the same PostgreSQL (fsync on), call the
same participants, which answer at once, and are driven by the same client, one after the other in turn. Each has one core of its own; all
else shares the other cores.
"""
