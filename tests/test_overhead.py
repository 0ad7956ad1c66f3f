"""MTU arithmetic: the figures that WireGuard and VXLAN documentation give."""

from __future__ import annotations

import pytest

from ravenvpn import overhead


def test_the_tunnels_mtu_is_that_of_wg_quick() -> None:
    assert overhead.tunnel_mtu(1500) == 1420


def test_the_tunnels_mtu_never_falls_below_ipv6s_minimum() -> None:
    assert overhead.tunnel_mtu(1300) == 1280


@pytest.mark.parametrize(("family", "expected"), [(4, 1450), (6, 1430)])
def test_a_vxlan_device_leaves_room_for_the_outer_headers(family: int, expected: int) -> None:
    """RFC 7348 and the Linux kernel: 50 bytes over IPv4, 70 over IPv6."""
    assert overhead.vxlan_mtu(1500, family) == expected
