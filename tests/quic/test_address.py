"""URLs and name resolution."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mqttquic_lab.errors import UnreachableError, UsageError
from mqttquic_lab.net.address import Address, host_port, is_ip_address, parse_url, resolve


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "transport"),
    [
        ("quic://broker.example", "quic", "broker.example", 14567, "quic"),
        ("quic://broker.example:1234", "quic", "broker.example", 1234, "quic"),
        ("mqtt-quic://h", "quic", "h", 14567, "quic"),
        ("mqtts://h", "mqtts", "h", 8883, "tls"),
        ("ssl://h", "mqtts", "h", 8883, "tls"),
        ("tls://h:8884", "mqtts", "h", 8884, "tls"),
        ("mqtt://h", "mqtt", "h", 1883, "tcp"),
        ("tcp://h:65535", "mqtt", "h", 65535, "tcp"),
        ("h", "quic", "h", 14567, "quic"),
        ("h:1883", "quic", "h", 1883, "quic"),
        ("MQTT://Broker.Example:1", "mqtt", "broker.example", 1, "tcp"),
        ("mqtt://127.0.0.1", "mqtt", "127.0.0.1", 1883, "tcp"),
        ("quic://[::1]", "quic", "::1", 14567, "quic"),
        ("[::1]:99", "quic", "::1", 99, "quic"),
        ("mqtts://[2001:DB8:0::1]:99", "mqtts", "2001:db8::1", 99, "tls"),
        ("mqtt://[fe80::1%25eth0]:1", "mqtt", "fe80::1%eth0", 1, "tcp"),
        ("quic://h/", "quic", "h", 14567, "quic"),
        ("quic://h:", "quic", "h", 14567, "quic"),
        ("quic://my_broker-1", "quic", "my_broker-1", 14567, "quic"),
        ("quic://bücher.example", "quic", "xn--bcher-kva.example", 14567, "quic"),
    ],
)
def test_parsing(url: str, scheme: str, host: str, port: int, transport: str) -> None:
    address = parse_url(url)
    assert (address.scheme, address.host, address.port, address.transport) == (scheme, host, port, transport)
    assert (address.username, address.password) == (None, None)
    assert parse_url(address.url) == address, "the canonical URL means the same"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("qiuc://h", "did you mean quic://?"),
        ("mqttss://h", "did you mean mqtts://?"),
        ("udp://h", "'quic://', 'mqtts://' (TLS) or 'mqtt://'"),
        ("wss://h", "WebSocket"),
        ("quic://", "names no host"),
        ("", "names no host"),
        (":1883", "names no host"),
        ("quic://h:0", "1 to 65535"),
        ("quic://h:65536", "1 to 65535"),
        ("quic://h:12a", "1 to 65535"),
        ("quic://h:-1", "1 to 65535"),
        ("quic://h:\u0661", "1 to 65535"),
        ("quic://h:" + "9" * 5000, "1 to 65535"),
        ("quic://h/topic", "no path"),
        ("quic://h?x=1", "no path"),
        ("quic://h#x", "no path"),
        ("::1", "in brackets"),
        ("quic://fe80::1:14567", "in brackets"),
        ("quic://[::1", "unbalanced"),
        ("quic://[::1]x", "unbalanced"),
        ("quic://[1.2.3.4]", "not an IPv6 address"),
        ("quic://[::1::]", "not an IPv6 address"),
        ("quic://a b", "white space"),
        ("quic://h\n", "white space"),
        ("quic://h\x00", "control"),
        ("quic://-h", "not a host name"),
        ("quic://h..x", "not a host name"),
        ("quic://h,i", "not a host name"),
        ("quic://<script>", "not a host name"),
        ("quic://" + "a" * 300, "not a host name"),
    ],
)
def test_refused_urls_name_the_fix(url: str, expected: str) -> None:
    with pytest.raises(UsageError, match=r"(?s).+") as caught:
        parse_url(url)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 300, "a long URL makes no long message"


def test_not_a_string() -> None:
    with pytest.raises(UsageError, match="not int"):
        parse_url(1883)  # type: ignore[arg-type]


def test_userinfo_is_parsed_and_kept_out_of_sight() -> None:
    address = parse_url("mqtts://ann:s%40crets%2F%3A@h:1")
    assert (address.username, address.password) == ("ann", "s@crets/:")
    for text in (repr(address), str(address), address.url, f"{address}"):
        assert "crets" not in text
        assert "ann" not in text
    assert parse_url("mqtt://ann@h").password is None
    assert parse_url("mqtt://ann:@h").password == ""
    assert parse_url("mqtt://a@b:c@h").password == "c"


@pytest.mark.parametrize(
    "url",
    [
        "mqtts://ann:hunter2@h:99999",
        "mqtts://ann:hunter2@",
        "mqtts://ann:hunter2@h/path",
        "mqtts://ann:hun/ter2@h",
        "mqtts://ann:hun?ter2@h",
        "mqtts://ann:hunter2@h x",
        "mqtts://ann:hunter2@a:b:c",
        "nosuch://ann:hunter2@h",
        "ann:hunter2://x@h",
        "mqtts://ann:hunter2@[::1",
    ],
)
def test_errors_do_not_repeat_the_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(url)
    for part in ("hunter2", "ter2", "ann"):
        assert part not in str(caught.value)


@pytest.mark.parametrize(
    ("transport", "host", "url"),
    [("quic", "h", "quic://h:7"), ("tls", "::1", "mqtts://[::1]:7"), ("tcp", "127.0.0.1", "mqtt://127.0.0.1:7")],
)
def test_address_of_parts(transport: str, host: str, url: str) -> None:
    address = Address.of(transport, host, 7)  # type: ignore[arg-type]
    assert address.url == url
    assert parse_url(url) == address


def test_helpers() -> None:
    assert host_port("::1", 1) == "[::1]:1"
    assert is_ip_address("10.0.0.1")
    assert is_ip_address("fe80::1%lo")
    assert not is_ip_address("localhost")


async def test_addresses_do_not_go_through_the_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_resolver(*_: object, **__: object) -> None:
        pytest.fail("asked the resolver for an IP address")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_resolver)
    assert await resolve("127.0.0.1", 5) == [(socket.AF_INET, ("127.0.0.1", 5))]
    assert await resolve("::1", 5, kind=socket.SOCK_DGRAM) == [(socket.AF_INET6, ("::1", 5, 0, 0))]


async def test_localhost_resolves_without_doubles() -> None:
    found = await resolve("localhost", 5)
    assert found
    assert len(set(found)) == len(found)
    assert {address[1] for _, address in found} == {5}


async def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(UnreachableError, match=r"'nosuch\.example' does not resolve"):
        await resolve("nosuch.example", 5)
