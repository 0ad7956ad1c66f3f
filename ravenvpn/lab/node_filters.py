"""Packet filter of a node: a model of the rules that its CNI and kube-proxy write, for nft and both iptables.

The model has the rules that affect packets of other programs, and little else:

* packets of established flows are accepted before later rules see them (openyurtio/raven #136);
* packets that conntrack marks invalid are dropped;
* packets from pods to addresses outside of the CNI's range are masqueraded, with flannel also packets from outside to
  pods (openyurtio/raven #184);
* packets with kube-proxy's mark are masqueraded, whatever their destination.

Chains have the names that flannel, Calico and kube-proxy give them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ravenvpn.lab.host import LabNode
from ravenvpn.lab.topology import Cni, Flavour

_MARK = "0x4000/0x4000"  # kube-proxy's mark for packets that are to be masqueraded in POSTROUTING


def programs(flavour: Flavour) -> tuple[str, ...]:
    """Return the programs that load the rules: one for both families with nft, one for each family with iptables."""
    if flavour is Flavour.NFT:
        return ("nft",)
    return tuple(f"{ip}tables-{_kind(flavour)}-restore" for ip in ("ip", "ip6"))


def install(node: LabNode, region_nodes: Sequence[LabNode]) -> None:
    """Load a node's rules. `region_nodes` are all nodes of its region, itself included.

    The CNI's range, which is not masqueraded, are the pod networks of these nodes: a CNI knows no other region.
    """
    flavour, is_calico = node.region.flavour, node.region.cni is Cni.CALICO
    inside = {
        "ip": [str(block.v4) for member in region_nodes for block in member.blocks],
        "ip6": [str(block.v6) for member in region_nodes for block in member.blocks],
    }
    if flavour is Flavour.NFT:
        node.run(["nft", "-f", "-"], input=_nft(inside, is_calico))
        return
    # --noflush keeps the rules of other programs, as kube-proxy and the CNIs do.
    for program, prefixes in zip(programs(flavour), inside.values(), strict=True):
        node.run([program, "--noflush"], input=_iptables(prefixes, is_calico))


def _kind(flavour: Flavour) -> str:
    """Return the middle part of the program's name, as in ip6tables-legacy-restore."""
    return flavour.removeprefix("iptables-")


def _iptables(inside: Sequence[str], is_calico: bool) -> str:
    """Return the input of iptables-restore or ip6tables-restore; `inside` are prefixes of that family."""
    # By table: its own chains, and its rules in the order in which they are appended.
    own = "cali-" if is_calico else "FLANNEL-"
    established = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    tables: dict[str, tuple[list[str], list[str]]] = {
        "raw": ([], []),
        "mangle": (
            [f"{own}PREROUTING"],
            [f"PREROUTING -j {own}PREROUTING", f"{own}PREROUTING {established}", f"FORWARD {established}"],
        ),
        "filter": (
            [f"{own}FORWARD", "KUBE-FORWARD"],
            [
                f"FORWARD -j {own}FORWARD",
                "FORWARD -j KUBE-FORWARD",
                "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
                f"KUBE-FORWARD -m mark --mark {_MARK} -j ACCEPT",
                f"KUBE-FORWARD {established}",
            ],
        ),
        "nat": (
            ["KUBE-POSTROUTING", f"{own}POSTROUTING", f"{own}OUT"],
            [
                "POSTROUTING -j KUBE-POSTROUTING",
                f"POSTROUTING -j {own}POSTROUTING",
                f"KUBE-POSTROUTING -m mark ! --mark {_MARK} -j RETURN",
                # The mark is cleared, so that a packet which passes the chain again is not translated twice.
                "KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
                "KUBE-POSTROUTING -j MASQUERADE --random-fully",
                # A packet from a pod is translated unless its destination is in the range of the CNI.
                *(f"{own}POSTROUTING -s {prefix} -j {own}OUT" for prefix in inside),
                *(f"{own}OUT -d {prefix} -j ACCEPT" for prefix in inside),
                f"{own}OUT -j MASQUERADE --random-fully",
            ],
        ),
    }
    if is_calico:
        # Felix drops packets whose source is not the pod's, then accepts forwarded packets to and from its pods. The
        # mark 0x10000 is its "accept": rules that are set later never see these packets.
        tables["raw"][1].append("PREROUTING -i cali+ -m rpfilter --validmark --invert -j DROP")
        tables["filter"][1].extend(
            [
                "cali-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "cali-FORWARD -m conntrack --ctstate INVALID -j DROP",
                "cali-FORWARD -i cali+ -j MARK --set-xmark 0x10000/0x10000",
                "cali-FORWARD -o cali+ -j MARK --set-xmark 0x10000/0x10000",
                "cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT",
            ]
        )
    else:
        tables["filter"][1].extend(
            f"FLANNEL-FORWARD {way} {prefix} -j ACCEPT" for prefix in inside for way in ["-s", "-d"]
        )
        # Packets from outside to pods; packets between pods are accepted above.
        tables["nat"][1].extend(f"FLANNEL-POSTROUTING -d {prefix} -j MASQUERADE --random-fully" for prefix in inside)
    # The format of iptables-save: a table, its chains with counters, its rules, COMMIT.
    lines = []
    for table, (chains, rules) in tables.items():
        if rules:
            lines += [
                f"*{table}",
                *(f":{chain} - [0:0]" for chain in chains),
                *(f"-A {rule}" for rule in rules),
                "COMMIT",
            ]
    return "".join(f"{line}\n" for line in lines)


def _nft(inside: dict[str, list[str]], is_calico: bool) -> str:
    """Return the same rules as one nft table; `inside` are prefixes by family, "ip" and "ip6"."""
    post = []
    for family, prefixes in inside.items():
        pods = f"{{ {', '.join(prefixes)} }}"
        post.append(f"{family} saddr {pods} {family} daddr != {pods} masquerade fully-random")
        if not is_calico:
            post.append(f"{family} saddr != {pods} {family} daddr {pods} masquerade fully-random")
    # Calico's reverse path check: a packet from a pod whose source has no route back to that device is dropped.
    check = (
        'chain check { type filter hook prerouting priority raw; iifname "cali*" fib saddr . iif oif missing drop; }'
    )
    return f"""table inet cni {{
  {check if is_calico else ""}
  chain early {{
    type filter hook prerouting priority mangle;
    ct state established,related accept;
  }}
  chain forward {{
    type filter hook forward priority filter;
    ct state invalid drop;
    meta mark & 0x4000 == 0x4000 accept;
    ct state established,related accept;
  }}
  chain leave {{
    type nat hook postrouting priority srcnat;
    meta mark & 0x4000 == 0x4000 meta mark set meta mark ^ 0x4000 masquerade fully-random;
    {"; ".join(post)};
  }}
}}
"""
