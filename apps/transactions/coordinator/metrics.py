"""The coordinator's numbers. `transactions_dead_letters` above 0 is the alarm."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

ENDED: Final = Counter("transactions_ended", "Transactions that came to an end.", ["mode", "state"])
OPEN: Final = Gauge("transactions_open", "Transactions that this replica sees to.")
DEAD_LETTERS: Final = Gauge("transactions_dead_letters", "Transactions of this replica that a person should look at.")
DEAD_LETTERS_MADE: Final = Counter("transactions_dead_letters_made", "Transactions that became dead letters.", ["mode"])
CALLS: Final = Counter("transactions_calls", "Calls of branches.", ["op", "verdict"])
FENCED: Final = Counter("transactions_fenced", "Writes that failed because another replica had taken over.")
TAKEN_OVER: Final = Counter("transactions_taken_over", "Transactions taken over from replicas that ended.")
LASTED: Final = Histogram("transactions_seconds", "From the first write to the end.", ["mode", "state"])
