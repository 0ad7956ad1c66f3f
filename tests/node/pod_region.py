"""A region of a gateway and a pod. The test holds the TUN open, and reads and writes its packets."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from node.box import Box, read_packet
from node.packets import Packet, parse

from ravenvpn.mesh.hoststate import HostState
from ravenvpn.node import conntrack
from ravenvpn.node.apply import ApplyResult, Host

POD = {4: "10.244.1.9", 6: "fd00:1::9"}
FAR_POD = {4: "10.244.2.9", 6: "fd00:2::9"}
POD_CIDR = {4: "10.244.1.0/24", 6: "fd00:1::/64"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
FLAVOURS = pytest.mark.parametrize("flavour", ["nft", "iptables-nft", "iptables-legacy"])


def masquerade(flavour: str, family: int) -> str:
    """Return commands that masquerade packets leaving and entering the pod network, as flannel does."""
    cidr = POD_CIDR[family]
    if flavour == "nft":
        ip = "ip" if family == 4 else "ip6"
        return f"""
            nft add table {ip} flannel
            nft 'add chain {ip} flannel post {{ type nat hook postrouting priority srcnat; }}'
            nft add rule {ip} flannel post {ip} saddr {cidr} {ip} daddr != {cidr} masquerade
            nft add rule {ip} flannel post {ip} saddr != {cidr} {ip} daddr {cidr} masquerade
        """
    program = f"{'ip' if family == 4 else 'ip6'}tables-{flavour.removeprefix('iptables-')}"
    return f"""
        {program} -t nat -A POSTROUTING -s {cidr} ! -d {cidr} -j MASQUERADE
        {program} -t nat -A POSTROUTING ! -s {cidr} -d {cidr} -j MASQUERADE
    """


def check_flows(result: ApplyResult) -> ApplyResult:
    """Check live flows after a change, as the reconciler does; return the result."""
    if result.flow_check is not None:
        conntrack.delete_misbound_flows(result.flow_check)
    return result


@dataclass
class Region:
    """`tun` is the gateway's ravenvpn0, held open instead of an agent. `apply` checks live flows too."""

    node: Box
    pod: Box
    tun: io.FileIO
    state_file: Path

    def apply(self, wanted: HostState) -> None:
        def work() -> ApplyResult:
            with Host(self.state_file) as host:
                return check_flows(host.apply(wanted))

        assert self.node.call(work).failed == ()

    def out_of_tunnel(self, taste: Callable[[bytes], bool], timeout: float = 5.0) -> Packet | None:
        data = read_packet(self.tun, taste, timeout)
        return parse(data) if data is not None else None

    def into_tunnel(self, packet: bytes) -> None:
        self.tun.write(packet)


def send(source: str | None, destination: str, port: int = 7777) -> None:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if source:
            sock.bind((source, 0))
        sock.sendto(b"hello", (destination, port))
