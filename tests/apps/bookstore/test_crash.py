"""Whatever happens between the calls of a purchase, it is seen through in the end, once."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random

import grpc
import pytest

from apps.bookstore import seed
from apps.bookstore.audit import audit, read
from proto.bookstore.v1 import orders_pb2, orders_pb2_grpc
from tests.apps.bookstore.shop import Gate, Hold, Program, failing, gate, running
from tests.ports import free_ports
from tests.waiting import eventually

Code = grpc.StatusCode


@dataclass
class GatedShop:
    """Orders, with a gate before each of the services that it calls."""

    directory: Path
    warehouse: Gate
    accounts: Gate
    stack: ExitStack
    programs: dict[str, Program] = field(default_factory=dict)

    def start_orders(self) -> Program:
        targets = {"WAREHOUSE_TARGET": self.warehouse.address, "ACCOUNTS_TARGET": self.accounts.address}
        orders = self.stack.enter_context(running(self.directory, "orders", **targets))
        self.programs["orders"] = orders
        return orders

    def hold(self, method: str, hold: Hold) -> Hold:
        """Hold up the next call of a method."""
        (self.warehouse if method == "Take" else self.accounts).rules[method] = hold
        return hold

    def buy(self, order_id: str, *, timeout_s: float = 10.0) -> orders_pb2.Order:
        with grpc.insecure_channel(self.programs["orders"].target) as channel:
            request = orders_pb2.PurchaseRequest(order_id=order_id, reader="ann", book="deep-currents", copies=2)
            return orders_pb2_grpc.OrdersStub(channel).Purchase(request, timeout=timeout_s)

    def state(self, order_id: str) -> str:
        with grpc.insecure_channel(self.programs["orders"].target) as channel:
            request = orders_pb2.GetOrderRequest(order_id=order_id)
            order = orders_pb2_grpc.OrdersStub(channel).GetOrder(request, timeout=10)
            return orders_pb2.Order.State.Name(order.state)

    def settles(self, order_id: str) -> None:
        """In the end, and then everything adds up."""
        eventually(lambda: self.state(order_id) == "SETTLED", timeout_s=20)
        assert audit(self.directory).wrong == ()


@pytest.fixture(scope="module")
def open_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedShop]:
    directory = tmp_path_factory.mktemp("gated")
    with ExitStack() as stack:
        warehouse = stack.enter_context(running(directory, "warehouse"))
        accounts = stack.enter_context(running(directory, "accounts"))
        shop = GatedShop(
            directory,
            stack.enter_context(gate(warehouse.target)),
            stack.enter_context(gate(accounts.target)),
            stack,
            {"warehouse": warehouse, "accounts": accounts},
        )
        shop.start_orders()
        yield shop


@pytest.fixture
def shop(open_shop: GatedShop) -> Iterator[GatedShop]:
    yield open_shop
    open_shop.warehouse.rules.clear()
    open_shop.accounts.rules.clear()


@pytest.mark.parametrize(
    ("method", "is_after", "state", "takings", "charges"),
    [
        ("Take", False, "PENDING", 0, 0),
        ("Take", True, "PENDING", 1, 0),
        ("Charge", False, "TAKEN", 1, 0),
        ("Charge", True, "TAKEN", 1, 1),
    ],
)
def test_orders_is_killed_between_two_steps(
    shop: GatedShop, method: str, is_after: bool, state: str, takings: int, charges: int
) -> None:
    order_id = f"killed-{method}-{is_after}"
    hold = shop.hold(method, Hold(is_after))
    with ThreadPoolExecutor(1) as pool:
        purchase = pool.submit(shop.buy, order_id, timeout_s=0.5)
        assert hold.reached.wait(10)
        shop.programs["orders"].kill()
        assert isinstance(purchase.exception(), grpc.RpcError)
    assert (state, takings, charges) == effects(shop.directory, order_id)
    hold.let_go.set()
    shop.start_orders()
    shop.settles(order_id)
    assert effects(shop.directory, order_id) == ("SETTLED", 1, 1)
    assert shop.buy(order_id).state == orders_pb2.Order.SETTLED


def effects(directory: Path, order_id: str) -> tuple[str, int, int]:
    """State, takings and charges of an order, from the databases."""
    held = read(directory)
    return held.after[order_id].state.value, int(order_id in held.takings), int(order_id in held.charges)


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
@pytest.mark.parametrize("method", ["Take", "Charge"])
def test_calls_that_fail_are_repeated_and_counted(shop: GatedShop, method: str, after: bool) -> None:
    order_id = f"repeated-{method}-{after}"
    (shop.warehouse if method == "Take" else shop.accounts).rules[method] = failing(2, Code.UNAVAILABLE, after=after)
    order = shop.buy(order_id)
    assert (order.state, order.repeated_calls) == (orders_pb2.Order.SETTLED, 2)
    shop.settles(order_id)


def test_a_call_without_an_answer_is_given_up_and_repeated(shop: GatedShop) -> None:
    hold = shop.hold("Take", Hold(is_after=True))
    order = shop.buy("no-answer")
    assert (order.state, order.repeated_calls) == (orders_pb2.Order.SETTLED, 1)
    hold.let_go.set()
    shop.settles("no-answer")


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.PERMISSION_DENIED, Code.UNIMPLEMENTED])
def test_whoever_is_refused_by_policy_does_not_ask_again_at_once(shop: GatedShop, code: Code) -> None:
    shop.warehouse.rules["Take"] = failing(1, code)
    with pytest.raises(grpc.RpcError) as error:
        shop.buy(f"policy-{code.name}")
    assert error.value.code() is (code if code is Code.RESOURCE_EXHAUSTED else Code.UNAVAILABLE)
    said = error.value.details() or ""
    assert f'order "policy-{code.name}" is recorded (PENDING)' in said
    assert f"warehouse answered {code.name}: made by the test" in said
    shop.settles(f"policy-{code.name}")


def test_a_refusal_that_the_warehouse_did_not_make_rejects_nothing(shop: GatedShop) -> None:
    """The copies are taken, the answer is lost, and something between says what the warehouse would say if it had none."""
    shop.warehouse.rules["Take"] = failing(1, Code.FAILED_PRECONDITION, after=True)
    with pytest.raises(grpc.RpcError) as error:
        shop.buy("forged")
    assert error.value.code() is Code.UNAVAILABLE
    shop.settles("forged")


def test_a_buyer_whose_deadline_is_over_still_gets_his_books(shop: GatedShop) -> None:
    hold = shop.hold("Charge", Hold())
    with pytest.raises(grpc.RpcError) as error:
        shop.buy("impatient", timeout_s=0.5)
    assert error.value.code() is Code.DEADLINE_EXCEEDED
    hold.let_go.set()
    shop.settles("impatient")


def test_a_stop_lets_a_purchase_finish(shop: GatedShop) -> None:
    hold = shop.hold("Take", Hold())
    orders = shop.programs["orders"]
    with ThreadPoolExecutor(2) as pool:
        purchase = pool.submit(shop.buy, "stopping")
        assert hold.reached.wait(10)
        orders.process.send_signal(signal.SIGTERM)
        eventually(lambda: refuses_new_calls(orders.target))
        hold.let_go.set()
        assert purchase.result().state == orders_pb2.Order.SETTLED
    assert orders.process.wait(20) == 0
    shop.start_orders()
    shop.settles("stopping")


def refuses_new_calls(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        try:
            orders_pb2_grpc.OrdersStub(channel).GetOrder(orders_pb2.GetOrderRequest(order_id="x"), timeout=1)
        except grpc.RpcError as error:
            return error.code() is Code.UNAVAILABLE
        return False


def test_an_order_waits_for_a_service_that_is_not_there(tmp_path: Path) -> None:
    seed.seed(tmp_path, 10)
    port_of_warehouse, port_of_accounts = free_ports(2)
    env = {
        "WAREHOUSE_TARGET": f"127.0.0.1:{port_of_warehouse}",
        "ACCOUNTS_TARGET": f"127.0.0.1:{port_of_accounts}",
    }
    with ExitStack() as stack:
        orders = stack.enter_context(running(tmp_path, "orders", **env))
        channel = stack.enter_context(grpc.insecure_channel(orders.target))
        stub = orders_pb2_grpc.OrdersStub(channel)
        request = orders_pb2.PurchaseRequest(order_id="early", reader="ann", book="deep-currents", copies=1)

        def becomes(state: str) -> bool:
            order = stub.GetOrder(orders_pb2.GetOrderRequest(order_id="early"), timeout=10)
            return orders_pb2.Order.State.Name(order.state) == state

        with pytest.raises(grpc.RpcError) as error:
            stub.Purchase(request, timeout=10)
        assert error.value.code() is Code.UNAVAILABLE
        assert 'order "early" is recorded (PENDING)' in (error.value.details() or "")
        stack.enter_context(running(tmp_path, "warehouse", PORT=str(port_of_warehouse)))
        eventually(lambda: becomes("TAKEN"), timeout_s=20)
        stack.enter_context(running(tmp_path, "accounts", PORT=str(port_of_accounts)))
        eventually(lambda: becomes("SETTLED"), timeout_s=20)
    assert audit(tmp_path).is_clean


def test_services_are_killed_one_after_the_other_while_readers_shop(tmp_path: Path) -> None:
    seed.seed(tmp_path, 10_000)
    ports = dict(zip(("warehouse", "accounts", "orders"), free_ports(3), strict=True))
    env = {f"{name.upper()}_TARGET": f"127.0.0.1:{port}" for name, port in ports.items()}
    with ExitStack() as stack:

        def start(name: str) -> Program:
            program = stack.enter_context(running(tmp_path, name, PORT=str(ports[name]), **env))
            assert program.target
            return program

        programs = {name: start(name) for name in ports}
        words = ("shoppers", "--rate", "60", "--seed", "3", "--timeout", "2s")
        shoppers = stack.enter_context(running(tmp_path, *words, **env))
        for number, name in enumerate(islice(cycle(Random(3).sample(sorted(ports), 3)), 4), start=1):
            eventually(partial(have_settled, tmp_path, 20 * number), timeout_s=20)
            programs[name].kill()
            assert audit(tmp_path).wrong == ()
            programs[name] = start(name)
        assert shoppers.stop() == 0
        eventually(lambda: audit(tmp_path).open_orders == 0, timeout_s=20)
        report = audit(tmp_path)
        assert report.wrong == ()
        assert report.money_cents.expected == report.money_cents.found > 0
        assert report.stock.expected == report.stock.found < 80_000
        assert {program.stop() for program in programs.values()} == {0}


def have_settled(directory: Path, orders: int) -> bool:
    """True if so many have; the shop is open, and yet the audit must be clean whenever it looks."""
    report = audit(directory)
    assert report.wrong == ()
    return report.orders["SETTLED"] >= orders
