"""Which addresses and names the fetcher never speaks to. Pure.

Always true: the lists here decide, not `ipaddress.is_global`, whose answers differ between Python releases and which
calls multicast, 6to4 with a loopback inside, and the metadata service of one cloud "global". Of IPv6 only 2000::/3 is
open at all. Every form of IPv6 that carries an IPv4 address at a known place is refused as such, whatever it carries:
the host itself has an IPv4 record when it wants to be reached so. A network behind NAT64 therefore needs IPv4 too.

Sources: the IANA special-purpose registries for IPv4 and IPv6 and the RFCs that they cite; the vendors' pages on
instance metadata.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

IPAddress = IPv4Address | IPv6Address

_METADATA = {
    ip_address(text): whose
    for text, whose in {
        "169.254.169.254": "cloud metadata",
        "169.254.170.2": "container credentials",
        "169.254.170.23": "pod identity",
        "169.254.169.253": "a cloud's name server",
        "169.254.42.42": "cloud metadata",
        "100.100.100.200": "cloud metadata",
        "168.63.129.16": "a cloud's host agent",  # looks like an ordinary public address
        "192.0.0.192": "cloud metadata",
        "fd00:ec2::254": "cloud metadata",
        "fd00:ec2::253": "a cloud's name server",
        "fd00:ec2::23": "pod identity",
        "fd20:ce::254": "cloud metadata",
        "fd00:42::42": "cloud metadata",
    }.items()
}

_IPV4 = [
    (IPv4Network(text), why)
    for text, why in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared by a carrier",
        "127.0.0.0/8": "loopback",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments",
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "multicast tunnels",
        "192.88.99.0/24": "6to4 relays",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112",
        "198.18.0.0/15": "network benchmarks",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved or broadcast",
    }.items()
]

_IPV6_OPEN = IPv6Network("2000::/3")
_IPV6 = [
    (IPv6Network(text), why)
    for text, why in {
        "::1/128": "loopback",
        "::/128": "unspecified",
        "::/96": "IPv4-compatible",
        "::ffff:0:0/96": "IPv4-mapped",
        "::ffff:0:0:0/96": "IPv4-translated",
        "64:ff9b::/96": "NAT64",
        "64:ff9b:1::/48": "local NAT64",
        "100::/64": "discard",
        "2001::/32": "Teredo",
        "2001::/23": "protocol assignments",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",
        "2620:4f:8000::/48": "AS112",
        "3fff::/20": "documentation",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
    }.items()
]
_ISATAP = (0x00005EFE, 0x02005EFE)  # upper half of an interface id whose lower half is an IPv4 address

_LOCAL_NAMES = frozenset({"localhost", "metadata", "instance-data", "host.docker.internal", "gateway.docker.internal"})
_LOCAL_SUFFIXES = (
    *("localhost", "localdomain", "local", "internal", "intranet", "private", "lan", "home", "corp"),
    *("home.arpa", "in-addr.arpa", "ip6.arpa", "svc", "cluster.local", "consul", "onion", "i2p"),
)


def refusal(address: IPAddress) -> str | None:
    """Why `address` must not be connected to, in a few words; None for an ordinary public address."""
    if address in _METADATA:
        return _METADATA[address]
    if isinstance(address, IPv4Address):
        return next((why for network, why in _IPV4 if address in network), None)
    if address.scope_id is not None:
        return "bound to an interface"
    listed = next((why for network, why in _IPV6 if address in network), None)
    if listed is not None:
        return listed
    if address not in _IPV6_OPEN:
        return "outside the public part of IPv6"
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return "ISATAP"
    return None


def refused_name(host: str) -> str | None:
    """Why the name `host` (lower case, without a trailing dot) must not even be resolved; None when it may be."""
    if host in _LOCAL_NAMES or host.endswith(tuple(f".{suffix}" for suffix in _LOCAL_SUFFIXES)):
        return "a local name"
    if "." not in host:
        return "not a full name"  # a search list of the resolver would complete it to one of the inside
    return None


def literal(host: str) -> IPAddress | None:
    """The address that `host` spells canonically, IPv6 without brackets; None for everything else."""
    try:
        return ip_address(host)
    except ValueError:
        return None
