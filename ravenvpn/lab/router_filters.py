"""Rules of a region's router as nft tables: NAT of each kind, and random loss.

Every function returns a whole table that replaces the one of that name in one transaction of `nft -f`.
"""

from __future__ import annotations

from ravenvpn.lab.topology import Nat, Region

_PRIVATE = """
  # Unsolicited packets are dropped before conntrack keeps an entry for them: it would occupy the port, and the next
  # mapping of the host behind NAT would get another one.
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

# Endpoint-independent filtering (RFC 4787 section 5): packets from any host to a mapped port are forwarded. The port
# that conntrack chose is known only after its own hook, so chain `learn` runs after it and records host and port for
# chain `admit`. There are two maps because nft 1.0.6 crashes on an update with concatenated data.
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

PORTS_PER_BINDING = 1000  # size of each range
FIRST_PORT = 20_000  # of the first range
BINDINGS = 40  # ranges before the first one is used again: the last ends at port 59,999


def nat_table(region: Region, binding: int = 0) -> str:
    """Return table `nat` for the region's kind of NAT.

    `binding` 0 keeps the source port where it is free. Each value above 0 maps to another range of ports, so that a
    new mapping never has the port of an old one.
    """
    if region.nat is Nat.SYMMETRIC:
        # `fully-random` also keeps conntrack from reusing the mapping that the same source has already.
        translate = "masquerade random,fully-random"
    elif binding:
        first = FIRST_PORT + (binding - 1) % BINDINGS * PORTS_PER_BINDING
        translate = f"masquerade to :{first}-{first + PORTS_PER_BINDING - 1}"
    else:
        translate = "masquerade"
    chains = "" if region.nat is Nat.NONE else _PRIVATE.format(translate=translate)
    if region.nat is Nat.FULL_CONE:
        chains += _CONE
    return _table("nat", chains)


def loss_table(share: float) -> str:
    """Return table `loss`, which drops this share of packets on the uplink in each direction.

    `share` is from 0 (an empty table) to 1, in steps of 0.0001.
    """
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
    # The table is declared before it is deleted: deleting a table that does not exist is an error.

    return f"table inet {name}\ndelete table inet {name}\ntable inet {name} {{{chains}}}\n"
