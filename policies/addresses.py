"""Which servers a source may name: the service must not become somebody's way into the operator's own network."""

import ipaddress
import socket
from collections.abc import Iterable

from django.conf import settings

from accounts.refusals import Refused
from engine.errors import SourceUnavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class AddressRefused(Refused):
    """A server's address is internal and not among the networks that the operator allows."""

    code = "address_refused"


def check(endpoints: Iterable[tuple[str, int]]) -> None:
    """Look all servers up and refuse those that lie inside. Raises AddressRefused, SourceUnavailable for no such name.

    A path is a Unix socket, so it means the machine that reads the source, as 127.0.0.1 does. The name is looked up
    again when a job connects: call this before each job, and let the network refuse what must never be reached.
    """
    for host, port in endpoints:
        for address in _addresses(host, port):
            if not is_allowed(address):
                leads = f"{host} is" if host == str(address) else f"{host} leads to {address},"
                raise AddressRefused(
                    f"{leads} an internal address. Whoever runs this installation can allow its network "
                    "with BACKUPSITE_SOURCE_NETWORKS.",
                    address=str(address),
                )


def _addresses(host: str, port: int) -> list[Address]:
    if host.startswith("/"):
        return [ipaddress.IPv4Address("127.0.0.1")]
    try:
        # Also what ipaddress would not take: 0x7f000001, 2130706433, 127.1.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceUnavailable(f"the name {host!r} can't be looked up: {error}") from error
    return [ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]


def is_allowed(address: Address) -> bool:
    """Say whether the service may connect there: a public address, or one in a network that the operator allows."""
    meant = _carried(address)
    if any(meant in network for network in settings.SOURCE_NETWORKS):
        return True
    return meant.is_global and not meant.is_multicast and not meant.is_reserved


def _carried(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for; any other address as it is."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.teredo:
        return address.teredo[1]
    if (address in _NAT64 or address in _COMPATIBLE) and int(address) > 1:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
