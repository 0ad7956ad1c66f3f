"""A node as OpenYurt's raven-agent leaves it: route driver "vxlan", VPN driver "wireguard", IPv4, as of v0.4.4.

Its entries are made with ip, wg and iptables, so that regions can be migrated from it and back. Its WireGuard is
`raven-vpn tun`, since not every kernel has WireGuard.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from ravenvpn.lab.agents import RAVEN_VPN, wait_until
from ravenvpn.lab.host import LabNode

DEVICE, TUNNEL = "raven0", "raven-wg0"
TABLE, TUNNEL_TABLE, MARK = 9027, 9028, "0x40"
MTU = 1420
_SETS = """
from pyroute2 import IPSet
with IPSet() as sets:
    sets.create("raven-mark-set", stype="hash:net")
    for net in {nets!r}:
        sets.add("raven-mark-set", net, etype="net")
"""


def vxlan_address(address: IPv4Address) -> str:
    """Return the address on the VXLAN device: 240 and the last three octets of the node's address."""
    return f"240.{str(address).split('.', 1)[1]}"


def mac(address: IPv4Address) -> str:
    """Return the MAC of the VXLAN device, derived from its address."""
    return "aa:0f:" + ":".join(f"{octet:02x}" for octet in IPv4Address(vxlan_address(address)).packed)


@dataclass
class UpstreamNode:
    """One node with upstream's agent."""

    node: LabNode
    gateway: LabNode  # of its region; may be the node itself
    neighbours: Sequence[LabNode]  # other nodes of the region
    remote: Sequence[str]  # podCIDRs of other regions
    tables: str = "iptables-legacy"
    _tunnel: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def is_gateway(self) -> bool:
        return self.node is self.gateway

    def install(self) -> None:
        """Make the entries of its route driver: device, routes, rule, sysctls and packet filter."""
        node, gateway = self.node, self.gateway
        others = list(self.neighbours) if self.is_gateway else [gateway]
        kind = "type vxlan id 200 dstport 4472 nolearning ageing 300"
        group = "" if self.is_gateway else f" remote {gateway.v4}"
        lines = [
            f"link add {DEVICE} address {mac(node.v4)} mtu {MTU} {kind} local {node.v4} dev {node.DEVICE}{group}",
            f"address add {vxlan_address(node.v4)}/8 dev {DEVICE} scope link",
            f"link set {DEVICE} up",
            *(f"neigh add {vxlan_address(o.v4)} lladdr {mac(o.v4)} dev {DEVICE} nud permanent" for o in others),
        ]
        if self.is_gateway:
            lines += [
                f"route add {block.v4} via {vxlan_address(o.v4)} dev {DEVICE} onlink mtu {MTU} table {TABLE}"
                for o in others
                for block in o.blocks
            ]
        else:
            lines.append(
                f"route add default via {vxlan_address(gateway.v4)} dev {DEVICE} onlink mtu {MTU} table {TABLE}"
            )
        lines.append(f"rule add prio 100 fwmark {MARK} lookup {TABLE}")
        node.run(["ip", "-batch", "-"], input="\n".join(lines))
        for other in others:
            entry = f"bridge fdb append {mac(other.v4)} dev {DEVICE} dst {other.v4} self permanent"
            node.run(entry.split())
        node.run(["sysctl", "-qw", f"net.ipv4.conf.{DEVICE}.rp_filter=2", "net.ipv4.conf.all.send_redirects=0"])
        node.run([sys.executable, "-c", _SETS.format(nets=list(self.remote))])
        way = "src" if self.is_gateway else "dst"
        self._iptables(
            "mangle -N RAVEN-MARK-CHAIN",
            f"mangle -A RAVEN-MARK-CHAIN -m set --match-set raven-mark-set {way} -j MARK --set-xmark {MARK}/{MARK}",
            "mangle -A PREROUTING -j RAVEN-MARK-CHAIN",
            "mangle -A OUTPUT -j RAVEN-MARK-CHAIN",
            # Upstream clears the mark with a tc filter on the device, which not every kernel has.
            f"mangle -A POSTROUTING -o {DEVICE} -j MARK --set-xmark 0/0xffffffff",
        )

    def entries(self) -> dict[str, str]:
        """Return its entries that no other program may change, by kind."""
        commands = {
            "rules": "ip rule show table 9027",
            "routes": "ip route show table 9027",
            "chain": f"{self.tables} -t mangle -S RAVEN-MARK-CHAIN",
        }
        return {name: self.node.run(command.split(), check=False).stdout for name, command in commands.items()}

    def remove(self) -> None:
        """Remove its entries as its agent does on SIGTERM."""
        self.node.run(
            ["ip", "-batch", "-", "-force"],
            input=f"rule del prio 100 fwmark {MARK} lookup {TABLE}\nroute flush table {TABLE}\n",
            check=False,
        )
        self.node.run(["ip", "link", "del", DEVICE], check=False)
        self._iptables(
            "mangle -D PREROUTING -j RAVEN-MARK-CHAIN",
            "mangle -D OUTPUT -j RAVEN-MARK-CHAIN",
            f"mangle -D POSTROUTING -o {DEVICE} -j MARK --set-xmark 0/0xffffffff",
            "mangle -F RAVEN-MARK-CHAIN",
            "mangle -X RAVEN-MARK-CHAIN",
        )
        script = "from pyroute2 import IPSet\nwith IPSet() as sets:\n    sets.destroy('raven-mark-set')"
        self.node.run([sys.executable, "-c", script])

    def connect(self, private_key: str, public_key: str, endpoint: str) -> None:
        """Start the VPN driver of a gateway, with one peer."""
        node = self.node
        self._tunnel = node.popen(
            [*RAVEN_VPN, "tun", "--foreground", TUNNEL], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: node.path(f"/run/wireguard/{TUNNEL}.sock").exists(), f"{TUNNEL} exists")
        setting = f"wg set {TUNNEL} listen-port 4500 private-key /dev/stdin peer {public_key}"
        allowed = ",".join(self.remote)
        node.run(
            [*setting.split(), *f"endpoint {endpoint} persistent-keepalive 5 allowed-ips {allowed}".split()],
            input=private_key,
        )
        lines = [f"link set {TUNNEL} mtu {MTU} up"]
        lines += [f"route add {net} dev {TUNNEL} scope link mtu {MTU} table {TUNNEL_TABLE}" for net in self.remote]
        lines.append(f"rule add prio 101 lookup {TUNNEL_TABLE}")
        node.run(["ip", "-batch", "-"], input="\n".join(lines))
        local = [str(block.v4) for one in (node, *self.neighbours) for block in one.blocks]
        self._iptables(
            "nat -N RAVEN-POSTROUTING",
            *(f"nat -A RAVEN-POSTROUTING -s {a} -d {b} -o {TUNNEL} -j ACCEPT" for a in local for b in self.remote),
            *(f"nat -A RAVEN-POSTROUTING -s {b} -d {a} -j ACCEPT" for a in local for b in self.remote),
            "nat -I POSTROUTING 1 -j RAVEN-POSTROUTING",
        )

    def disconnect(self) -> None:
        """Stop the VPN driver and remove its entries."""
        assert self._tunnel is not None
        self._tunnel.terminate()
        self._tunnel.wait(timeout=20)
        self.node.run(["ip", "rule", "del", "prio", "101"])
        self._iptables(
            "nat -D POSTROUTING -j RAVEN-POSTROUTING", "nat -F RAVEN-POSTROUTING", "nat -X RAVEN-POSTROUTING"
        )

    def _iptables(self, *commands: str) -> None:
        for command in commands:
            self.node.run([self.tables, "-t", *command.split()])
