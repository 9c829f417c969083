"""The coordinator: one machine a transaction, a log, and replicas that share the work.

states    what a transaction can be, and what leads from one to the next: tables
machine   decides what to write, whom to call and when: no clock, no sockets, no database
check     refuses what is ill-formed
codec     transactions as bytes
log       the contract of the log; `sql` is one
engine    carries out what the machines decide; leases and fencing
service   the gRPC edge
"""
