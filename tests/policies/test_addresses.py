"""No internal address may be named by a source, however it is written, unless the operator allows its network."""

from ipaddress import ip_network

import pytest

from engine.errors import SourceUnavailable
from policies import addresses


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("127.0.0.1", id="loopback"),
        pytest.param("127.8.9.10", id="all of loopback"),
        pytest.param("::1", id="loopback, IPv6"),
        pytest.param("localhost", id="a name that means loopback"),
        pytest.param("10.1.2.3", id="private 10"),
        pytest.param("172.16.0.1", id="private 172"),
        pytest.param("192.168.1.1", id="private 192"),
        pytest.param("fd12:3456::1", id="private, IPv6"),
        pytest.param("169.254.169.254", id="a cloud's metadata"),
        pytest.param("fe80::1", id="link-local, IPv6"),
        pytest.param("100.64.0.1", id="carrier-grade NAT"),
        pytest.param("0.0.0.0", id="this machine"),
        pytest.param("::", id="this machine, IPv6"),
        pytest.param("224.0.0.1", id="multicast"),
        pytest.param("ff02::1", id="multicast, IPv6"),
        pytest.param("255.255.255.255", id="broadcast"),
        pytest.param("240.0.0.1", id="reserved"),
        pytest.param("192.0.2.1", id="documentation"),
        pytest.param("::ffff:127.0.0.1", id="IPv4-mapped"),
        pytest.param("::127.0.0.1", id="IPv4-compatible"),
        pytest.param("2002:7f00:1::", id="6to4"),
        pytest.param("64:ff9b::7f00:1", id="NAT64"),
        pytest.param("2001:0:102:304::80ff:fffe", id="Teredo"),
        pytest.param("0x7f000001", id="hexadecimal"),
        pytest.param("2130706433", id="decimal"),
        pytest.param("0177.0.0.1", id="octal"),
        pytest.param("127.1", id="short"),
        pytest.param("/run/postgresql", id="a socket of the machine that reads"),
    ],
)
def test_an_internal_address_is_refused(host):
    with pytest.raises(addresses.AddressRefused, match="BACKUPSITE_SOURCE_NETWORKS"):
        addresses.check([(host, 5432)])


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_let_through(host):
    addresses.check([(host, 443)])


def test_every_server_of_a_source_is_looked_at():
    with pytest.raises(addresses.AddressRefused, match=r"10\.0\.0\.1"):
        addresses.check([("8.8.8.8", 443), ("10.0.0.1", 443)])


@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1", "/run/postgresql", "10.9.9.9", "fd00::7"])
def test_the_operator_can_allow_networks(settings, host):
    settings.SOURCE_NETWORKS = [ip_network(text) for text in ("127.0.0.0/8", "10.0.0.0/8", "fd00::/8")]
    addresses.check([(host, 5432)])


def test_a_network_that_is_allowed_opens_no_other(settings):
    settings.SOURCE_NETWORKS = [ip_network("10.0.0.0/8")]
    with pytest.raises(addresses.AddressRefused):
        addresses.check([("127.0.0.1", 5432)])


@pytest.mark.parametrize("host", ["no-such-host.invalid", "user@example.org", "", "a" * 300])
def test_a_name_that_leads_nowhere_is_said_to(host):
    with pytest.raises((SourceUnavailable, addresses.AddressRefused)):
        addresses.check([(host, 443)])
