"""What routers do to packets, as nft tables: translate by the kind of NAT, lose some."""

from __future__ import annotations

from ravenvpn.lab.topology import LabRegion, Nat

_PRIVATE = """
  # Packets nobody asked for get no answer, and leave no conntrack entry that would take the port from its owner.
  chain input {{
    type filter hook input priority filter;
    iifname "uplink" meta l4proto {{ tcp, udp }} ct state new drop;
  }}
  chain translate {{
    type nat hook postrouting priority srcnat;
    oifname "uplink" meta l4proto {{ tcp, udp }} {translate};
    oifname "uplink" masquerade;
  }}
"""

# RFC 4787 speaks of endpoint-independent filtering. The port that conntrack chose is known only after its hook; there
# the way back is written down for strangers. Two maps, since nft 1.0.6 crashes on updates with concatenated data.
_CONE = """
  map host4 { type inet_service : ipv4_addr; flags dynamic, timeout; timeout 5m; }
  map host6 { type inet_service : ipv6_addr; flags dynamic, timeout; timeout 5m; }
  map port4 { type inet_service : inet_service; flags dynamic, timeout; timeout 5m; }
  map port6 { type inet_service : inet_service; flags dynamic, timeout; timeout 5m; }
  chain learn {
    type filter hook postrouting priority srcnat + 1;
    oifname "uplink" ct direction original meta nfproto ipv4 meta l4proto udp \
      update @host4 { udp sport : ct original ip saddr } update @port4 { udp sport : ct original proto-src };
    oifname "uplink" ct direction original meta nfproto ipv6 meta l4proto udp \
      update @host6 { udp sport : ct original ip6 saddr } update @port6 { udp sport : ct original proto-src };
  }
  chain admit {
    type nat hook prerouting priority dstnat;
    iifname "uplink" meta nfproto ipv4 meta l4proto udp \
      dnat ip to udp dport map @host4 : udp dport map @port4;
    iifname "uplink" meta nfproto ipv6 meta l4proto udp \
      dnat ip6 to udp dport map @host6 : udp dport map @port6;
  }
"""

PORTS_PER_BINDING = 1000


def translation(region: LabRegion, binding: int = 0) -> str:
    """The router's NAT, for `nft -f`, replacing what was there. Each `binding` above 0 maps to ports of its own."""
    if region.nat is Nat.SYMMETRIC:
        # Random in this sense also keeps conntrack from reusing the mapping it has for the same source.
        translate = "masquerade random,fully-random"
    elif binding:
        first = 20_000 + (binding - 1) % 40 * PORTS_PER_BINDING
        translate = f"masquerade to :{first}-{first + PORTS_PER_BINDING - 1}"
    else:
        translate = "masquerade"
    chains = "" if region.nat is Nat.NONE else _PRIVATE.format(translate=translate)
    if region.nat is Nat.FULL_CONE:
        chains += _CONE
    return _table("nat", chains)


def loss(share: float) -> str:
    """Packets lost on the uplink in each direction, for `nft -f`, replacing what was there."""
    chance = f"numgen random mod 10000 < {round(share * 10_000)} " if share < 1 else ""
    chain = f"""
  chain lose {{
    type filter hook forward priority filter;
    iifname "uplink" {chance}drop;
    oifname "uplink" {chance}drop;
  }}
"""
    return _table("loss", chain if share else "")


def _table(name: str, chains: str) -> str:
    # Declared before it is deleted, since deleting what is not there is an error.
    return f"table inet {name}\ndelete table inet {name}\ntable inet {name} {{{chains}}}\n"
