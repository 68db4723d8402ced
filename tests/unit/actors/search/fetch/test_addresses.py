from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.search.fetch.addresses import refusal, refused_name

PRIVATE_NETWORKS = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10"]
private = st.sampled_from(PRIVATE_NETWORKS).flatmap(
    lambda text: st.integers(0, IPv4Network(text).num_addresses - 1).map(lambda n: IPv4Network(text)[n])
)
ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)


def embeddings(inner: int, prefix: int, tail: int):
    """Every IPv6 address that carries the IPv4 address `inner` at a place where something reads it."""
    free = (0x2001 << 112) | (0x4860 << 96) | ((prefix & 0xFFFFFFFF) << 64)  # a network that is public
    return {
        "mapped": (0xFFFF << 32) | inner,
        "compatible": inner,
        "translated": (0xFFFF << 48) | inner,
        "nat64": (0x0064FF9B << 96) | inner,
        "local nat64": (0x0064FF9B0001 << 80) | ((inner >> 16) << 64) | ((inner & 0xFFFF) << 40) | (tail & 0xFF),
        "6to4": (0x2002 << 112) | (inner << 80) | (tail & (2**80 - 1)),
        "teredo server": (0x20010000 << 96) | (inner << 64) | (tail & (2**64 - 1)),
        "teredo client": (0x20010000 << 96) | ((tail & 0xFFFFFFFF) << 64) | (inner ^ 0xFFFFFFFF),
        "isatap": free | (0x00005EFE << 32) | inner,
        "isatap, global": free | (0x02005EFE << 32) | inner,
    }


@given(private, st.integers(0, 2**32 - 1), st.integers(0, 2**80 - 1))
def test_a_private_address_is_refused_in_every_form_of_ipv6_that_carries_it(inner, prefix, tail):
    assert refusal(inner)
    for form, value in embeddings(int(inner), prefix, tail).items():
        assert refusal(IPv6Address(value)), form


@given(ipv4, st.integers(0, 2**32 - 1), st.integers(0, 2**80 - 1))
def test_forms_that_carry_a_public_address_are_refused_as_well(inner, prefix, tail):
    for form, value in embeddings(int(inner), prefix, tail).items():
        assert refusal(IPv6Address(value)), form


@given(st.one_of(ipv4, ipv6))
def test_what_the_standard_library_does_not_call_global_is_refused(address):
    if not address.is_global:
        assert refusal(address)


@given(ipv6)
def test_an_address_on_an_interface_is_refused(address):
    assert refusal(IPv6Address(f"{address}%eth0"))


@given(st.integers(1, 9).map(lambda n: f"{n}.{n}.{n}.{n}"))
def test_low_public_addresses_are_open(text):
    assert refusal(ip_address(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0"),
        *("126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0"),
        *("192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
        *("2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e", "2001:200::1"),
    ],
)
def test_ordinary_addresses_at_the_edges_of_the_lists_are_open(text):
    assert refusal(ip_address(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1"),
        *("127.255.255.255", "169.254.0.0", "169.254.169.254", "169.254.170.2", "172.16.0.0", "172.31.255.255"),
        *("100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.0.8", "192.0.2.1", "192.31.196.1", "192.52.193.1"),
        *("192.88.99.1", "192.168.0.0", "192.168.255.255", "192.175.48.1", "198.18.0.0", "198.19.255.255"),
        *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::7f00:1", "::ffff:7f00:1", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1"),
        *("100:0:0:1::1", "2001::1", "2001:1::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1"),
        *("2002:7f00:1::", "2620:4f:8000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1"),
        *("fec0::1", "ff02::1", "4000::1", "1fff::1", "2606:4700:4700::1111%eth0"),
    ],
)
def test_addresses_of_the_registries_and_of_clouds_are_refused(text):
    assert refusal(ip_address(text))


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "a.localhost", "metadata", "metadata.google.internal", "printer.local", "db.lan", "intranet"),
        *("host.docker.internal", "api.default.svc", "api.default.svc.cluster.local", "x.home.arpa", "a.onion"),
    ],
)
def test_local_names_are_not_resolved(host):
    assert refused_name(host)


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "local.org", "internal.com", "thelocal.se"])
def test_names_that_only_look_local_are_resolved(host):
    assert refused_name(host) is None
