"""The sysctls of one node: forwarding between pods, VXLAN and tunnel (Documentation/networking/ip-sysctl.rst)."""

from __future__ import annotations

from collections.abc import Iterable

from ravenvpn.mesh.context import Context
from ravenvpn.mesh.hoststate import TUNNEL_DEVICE, VXLAN_DEVICE, Sysctl
from ravenvpn.mesh.reason import Reason, ReasonCode

_V4, _V6 = "net/ipv4/conf", "net/ipv6/conf"
_FORWARDING = {  # why a device of ours forwards
    TUNNEL_DEVICE: Reason(ReasonCode.FORWARD_TUNNEL),
    VXLAN_DEVICE: Reason(ReasonCode.FORWARD_VXLAN),
}


def sysctls(context: Context) -> Iterable[Sysctl]:
    """Yield the settings of our devices and, where the tunnel needs them, of others' devices (`ours` False)."""
    devices = [
        *([VXLAN_DEVICE] if context.overlay is not None else []),
        *([TUNNEL_DEVICE] if context.is_gateway else []),
    ]
    if not devices:
        return
    for device in devices:
        # rp_filter 2 (loose): while roles change, packets arrive by another device than the route back (RFC 3704).
        # send_redirects 0: a hub forwards packets out of the device they came in by, which is no routing mistake.
        yield Sysctl(f"{_V4}/{device}/forwarding", "1", reason=_FORWARDING[device])
        yield Sysctl(f"{_V4}/{device}/rp_filter", "2", reason=Reason(ReasonCode.LOOSE_RP_FILTER))
        yield Sysctl(f"{_V4}/{device}/send_redirects", "0", reason=Reason(ReasonCode.NO_REDIRECTS))
    for device in context.facts.pod_devices:
        reason = Reason(ReasonCode.FORWARD_PODS, device)
        yield Sysctl(f"{_V4}/{device}/forwarding", "1", ours=False, reason=reason)
    if context.facts.ipv6:
        yield from _ipv6(devices, context)


def _ipv6(devices: list[str], context: Context) -> Iterable[Sysctl]:
    """Yield the IPv6 settings: per device with force_forwarding (Linux ≥ 6.17), else for the whole host."""
    facts = context.facts
    if facts.ipv6_disabled:
        for device in devices:
            yield Sysctl(f"{_V6}/{device}/disable_ipv6", "0", reason=Reason(ReasonCode.ENABLE_IPV6))
    if facts.force_forwarding:
        for device in devices:
            yield Sysctl(f"{_V6}/{device}/force_forwarding", "1", reason=_FORWARDING[device])
        for device in facts.pod_devices:
            reason = Reason(ReasonCode.FORWARD_PODS, device)
            yield Sysctl(f"{_V6}/{device}/force_forwarding", "1", ours=False, reason=reason)
        return
    # Without force_forwarding only `all/forwarding` lets a device forward, and that makes every device with
    # accept_ra=1 ignore router advertisements: 2 keeps them.
    for device in facts.advertised:
        reason = Reason(ReasonCode.KEEP_ROUTER_ADVERTISEMENTS, device)
        yield Sysctl(f"{_V6}/{device}/accept_ra", "2", ours=False, reason=reason)
    yield Sysctl(f"{_V6}/all/forwarding", "1", ours=False, reason=Reason(ReasonCode.FORWARD_ALL_IPV6))
