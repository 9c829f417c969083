"""How the bookstore's programs call each other: by name, and with a channel that outlives the peer's absence."""

from typing import Final

import grpc

WAREHOUSE: Final = "warehouse.shop:50051"
ACCOUNTS: Final = "accounts.shop:50051"
ORDERS: Final = "orders.shop:50051"
PAYMENT: Final = "payment.shop:50051"
BANK: Final = "bank.shop:50051"
NOTIFICATION: Final = "notification.shop:50051"
TRANSACTIONS: Final = "transactions.shop:50051"
"""Names in the mesh; `WAREHOUSE_TARGET`, `ACCOUNTS_TARGET` and so on in the environment say otherwise."""

_OPTIONS: Final = (
    # gRPC's own defaults wait up to two minutes before they look for a peer again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", 1000),  # in truth: how long one attempt to connect may take
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
)


def channel(target: str) -> grpc.aio.Channel:
    """A channel; `grpc_proxy` in the environment is honoured by gRPC itself."""
    return grpc.aio.insecure_channel(target, options=list(_OPTIONS))
