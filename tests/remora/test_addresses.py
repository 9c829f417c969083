"""What users write for addresses, durations and names, and what is no such thing."""

import pytest

from remora.addresses import UsageError, host_port, lease_seconds, seconds, servers, service_name


@pytest.mark.parametrize(
    ("text", "expected"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("h:65535", ("h", 65535)), ("[::1]:80", ("[::1]", 80))]
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert host_port(text, "--x") == expected


@pytest.mark.parametrize("text", ["", ":", "h", "h:", ":80", "h:65536", "h:-1", "h:8o", "h:²", "h:１"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"--x: .* is not HOST:PORT"):
        host_port(text, "--x")


def test_several_servers_are_one_control_plane() -> None:
    assert servers("a:1", "--x") == (("a", 1),)
    assert servers("a:1, [::1]:2,b:1", "--x") == (("a", 1), ("[::1]", 2), ("b", 1))
    for text, why in (
        ("a:1,", "not HOST:PORT"),
        ("a:1,a:1", "stands twice"),
        (",".join(f"h:{n}" for n in range(17)), "at most 16"),
    ):
        with pytest.raises(UsageError, match=f"--x: .*{why}"):
            servers(text, "--x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0.0), ("30", 30.0), ("500ms", 0.5), ("1.5s", 1.5), ("2m", 120.0), ("1000h", 3_600_000.0)],
)
def test_durations(text: str, expected: float) -> None:
    assert seconds(text, "--x") == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1d", "1e3", "inf", "1.s", "１s", "1001h", "9" * 400])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="--x: "):
        seconds(text, "--x")


def test_leases_have_bounds() -> None:
    assert [lease_seconds(text, "--ttl") for text in ("5s", "1h")] == [5.0, 3600.0]
    for text in ("4999ms", "0", "3601s"):
        with pytest.raises(UsageError, match="from 5s to 1h"):
            lease_seconds(text, "--ttl")


def test_names() -> None:
    assert service_name("orders") == ("orders", "default")
    assert service_name("orders.shop") == ("orders", "shop")
    assert service_name("a" * 63 + ".b-1") == ("a" * 63, "b-1")
    for text in ("", ".", "a.", "a.b.c", "A", "-a", "a-", "a_b", "a" * 64, "ä", "a\n"):
        with pytest.raises(UsageError):
            service_name(text)
