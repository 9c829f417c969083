"""What an operator does by hand: drains and undrains instances under traffic, lets go those that are held, asks any replica."""

import json
import re

from proto.mesh.v1 import service_pb2
from tests.mesh import Mesh, load
from tests.ports import free_ports
from tests.waiting import eventually


def test_a_drained_instance_gets_no_new_calls_until_it_is_undrained_and_no_call_fails(guests: Mesh) -> None:
    for name in ("stays", "drained"):
        guests.echo(name, "draining")
    guests.until_healthy("stays", "drained", service="draining")
    caller = guests.caller()
    stub = caller.stub("draining:80")
    with load(lambda: caller.says(stub), threads=2) as each:
        eventually(lambda: each.instances.keys() == {"stays", "drained"})
        said = guests.remora("drain", "draining", "drained")
        assert (said.code, said.out) == (0, "drained of draining.default drained\n"), said
        each.more(20)  # those that were under way
        before = each.instances["drained"]
        each.more(100)
        assert each.instances["drained"] == before
        [there] = [item for item in guests.instances("draining") if item.id == "drained"]
        assert there.health == service_pb2.DRAINING
        # By its address too.
        said = guests.remora("undrain", "draining", f"{there.address}:{there.port}")
        assert (said.code, said.out) == (0, "drained of draining.default undrained\n"), said
        eventually(lambda: each.instances["drained"] > before)
    assert each.failed == {}


def test_an_instance_that_is_not_there_cannot_be_drained(guests: Mesh) -> None:
    for command in ("drain", "undrain", "deregister"):
        said = guests.remora(command, "nobody", "none")
        assert (said.code, said.out, said.err) == (1, "", "no instance none of nobody.default is registered\n")


def test_who_is_held_is_said_and_let_go(mesh: Mesh) -> None:
    """Everybody who keeps leases is killed at once: the registry cannot know whether the instances are gone too."""
    ports = free_ports(3)
    keepers = [
        mesh.spawn("register", "hand", f"127.0.0.1:{port}", "--ttl", "5s", name=f"register-{port}") for port in ports
    ]
    for keeper in keepers:
        keeper.until("registered as")
    for keeper in keepers:
        keeper.kill()
    eventually(lambda: [each.health for each in mesh.instances("hand")] == [service_pb2.HELD] * 3, timeout_s=15)
    assert "the leases of most instances of hand.default ended within seconds" in mesh.plane.err
    listed = mesh.remora("endpoints", "hand")
    assert listed.code == 0 and listed.out.count("HELD") == 3
    said = mesh.remora("status")
    assert "hand.default: 3 instances are held" in said.err and "remora release hand.default" in said.err
    assert json.loads(mesh.remora("status", "-o", "json").out)["held"] == [{"service": "hand.default", "instances": 3}]
    assert mesh.remora("release", "other").code == 1
    said = mesh.remora("release", "hand")
    assert (said.code, said.out) == (0, "3 instances of hand.default released\n")
    eventually(lambda: not mesh.instances("hand"))
    assert mesh.remora("release").code == 1


def test_of_several_servers_the_first_that_can_be_reached_is_asked(guests: Mesh) -> None:
    [dead] = free_ports(1)
    said = guests.remora("status", "--server", f"127.0.0.1:{dead},{guests.server}")
    assert said.code == 0, said
    said = guests.remora("status", "--server", f"127.0.0.1:{dead},127.0.0.1:{dead + 1}")
    assert said.code == 3 and re.match(r"remora: no control plane at 127.0.0.1:\d+,127.0.0.1:\d+; ", said.err)
    said = guests.remora("status", "--server", "127.0.0.1:1,nothing")
    assert said.code == 2 and "is not HOST:PORT" in said.err


def test_a_bootstrap_names_all_control_planes(guests: Mesh) -> None:
    words = ("bootstrap", "--service", "cart.shop", "--server", "127.0.0.1:1,10.0.0.1:2")
    [cluster] = json.loads(guests.remora(*words).out)["static_resources"]["clusters"]
    assert cluster["type"] == "STATIC"
    sockets = [
        each["endpoint"]["address"]["socket_address"]
        for each in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ]
    assert sockets == [{"address": "127.0.0.1", "port_value": 1}, {"address": "10.0.0.1", "port_value": 2}]
    by_name = json.loads(guests.remora(*words[:-1], "one.mesh:1,two.mesh:2").out)
    assert by_name["static_resources"]["clusters"][0]["type"] == "STRICT_DNS"
    proxyless = json.loads(guests.remora(*words, "--engine", "grpc").out)
    assert [each["server_uri"] for each in proxyless["xds_servers"]] == ["127.0.0.1:1", "10.0.0.1:2"]
