"""Effect of the host state on real packets: from a pod through a gateway's kernel to its TUN, and back."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from node.box import Box
from node.packets import ICMP, ICMPV6, TCP, UDP, Capture, Packet, syn, to, udp
from node.pod_region import FAMILIES, FAR_POD, FLAVOURS, POD, Region, masquerade, send
from node.worlds import gateway

from ravenvpn.mesh.hoststate import TABLE_REMOTE, PacketFilter, Route

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "iptables-nft", "iptables-legacy", "conntrack")]


def receive(host: Box, address: str, port: int, inject: Callable[[], None]) -> str:
    """Return the source address that a server on `host` sees of the packets that `inject` sends."""

    def serve() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.bind((address, port))
        return sock

    with host.call(serve) as sock:
        inject()
        return str(sock.recvfrom(100)[1][0])


@FAMILIES
@FLAVOURS
def test_a_pod_keeps_its_source_through_the_tunnel(region: Region, family: int, flavour: str) -> None:
    """A CNI's MASQUERADE would set the gateway's address, which the remote side drops (openyurtio/raven #184)."""
    region.node.sh(masquerade(flavour, family))
    region.apply(replace(gateway(), packet_filter=None))
    region.pod.call(send, None, FAR_POD[family])
    masqueraded = region.out_of_tunnel(to(FAR_POD[family]))
    assert masqueraded is not None
    assert masqueraded.source != POD[family]  # control: without ravenvpn's chain the source is lost

    region.apply(gateway())
    region.pod.call(send, None, FAR_POD[family])

    packet = region.out_of_tunnel(to(FAR_POD[family]))
    assert packet is not None
    assert packet.source == POD[family]


@FAMILIES
@FLAVOURS
def test_a_pod_sees_the_source_of_the_far_pod(region: Region, family: int, flavour: str) -> None:
    """Flannel also masquerades packets that enter the pod network."""
    region.node.sh(masquerade(flavour, family))
    region.apply(gateway())

    def inject() -> None:
        region.into_tunnel(udp(FAR_POD[family], POD[family], 7000, 8888))

    assert receive(region.pod, POD[family], 8888, inject) == FAR_POD[family]


def test_a_hub_relays_packets_with_their_source(region: Region) -> None:
    region.node.sh("iptables-legacy -t nat -A POSTROUTING -j MASQUERADE")
    region.apply(gateway())

    region.into_tunnel(udp("10.244.2.9", "10.244.3.9", 7000, 7001))

    packet = region.out_of_tunnel(to("10.244.3.9"))
    assert packet is not None
    assert packet.source == "10.244.2.9"


# kube-proxy, iptables mode: marks packets for masquerading, DNATs them, masquerades by the mark.
KUBE_PROXY = """
iptables-legacy -t nat -N KUBE-SVC
iptables-legacy -t nat -A PREROUTING -d {service} -p udp --dport {port} -j KUBE-SVC
iptables-legacy -t nat -A KUBE-SVC -j MARK --or-mark 0x4000
iptables-legacy -t nat -A KUBE-SVC -p udp -j DNAT --to-destination {pod}
iptables-legacy -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE
"""


def test_replies_to_a_flow_that_kube_proxy_masquerades_return_to_the_node_of_the_dnat(region: Region) -> None:
    """With the pod's source the reply would bypass the node that holds the DNAT state."""
    region.node.sh(KUBE_PROXY.format(service="10.96.0.10", port=80, pod="10.244.2.9:8080"))
    region.apply(gateway())

    region.pod.call(send, None, "10.96.0.10", 80)

    packet = region.out_of_tunnel(to("10.244.2.9"))
    assert packet is not None
    assert (packet.source, packet.ports[1]) == ("10.244.1.1", 8080)


def test_a_remote_client_of_a_local_service_is_left_to_kube_proxy(region: Region) -> None:
    """NodePort on the gateway with a local pod: masqueraded with the bridge's address, as without an agent."""
    own = PacketFilter(local=(ip_network("10.244.1.0/24"),), own_sources=(ip_address("10.0.0.5"),))
    region.node.sh(KUBE_PROXY.format(service="10.0.0.5", port=30080, pod="10.244.1.9:8080"))
    region.apply(replace(gateway(), packet_filter=own))

    def inject() -> None:
        region.into_tunnel(udp("10.244.2.9", "10.0.0.5", 7000, 30080))

    assert receive(region.pod, "10.244.1.9", 8080, inject) == "10.244.1.1"


@FAMILIES
def test_other_sources_of_the_node_are_translated_to_the_announced_one(region: Region, family: int) -> None:
    region.apply(gateway())

    region.node.call(send, {4: "10.0.0.5", 6: "fd00:10::5"}[family], FAR_POD[family])

    packet = region.out_of_tunnel(to(FAR_POD[family]))
    assert packet is not None
    assert packet.source == {4: "10.244.1.1", 6: "fd00:1::1"}[family]


def test_the_tunnel_address_is_not_translated(region: Region) -> None:
    wanted = gateway()
    own = wanted.addresses[0].address.ip
    mesh = Route(ip_network("fdaa::/48"), TABLE_REMOTE, device="ravenvpn0", source=own, mtu=1420)
    region.apply(replace(wanted, routes=(*wanted.routes, mesh)))

    region.node.call(send, None, "fdaa:0:0:1::9")

    packet = region.out_of_tunnel(to("fdaa:0:0:1::9"))
    assert packet is not None
    assert packet.source == "fdaa:0:0:1::5"


@FAMILIES
def test_the_mss_follows_the_mtu_of_the_route(region: Region, family: int) -> None:
    """Towards the remote pod the route to it decides, towards the local pod the return route."""
    expected = {4: 1420 - 40, 6: 1420 - 60}[family]
    region.apply(gateway())

    def connect() -> None:
        with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.connect_ex((FAR_POD[family], 80))

    region.pod.call(connect)
    leaving = region.out_of_tunnel(to(FAR_POD[family], TCP))
    capture = region.pod.call(Capture, "eth0")
    region.into_tunnel(syn(FAR_POD[family], POD[family], 7000, 8080, mss=1460))
    arriving = captured(capture, lambda packet: packet.protocol == TCP and packet.destination == POD[family])

    assert leaving is not None
    assert leaving.mss == expected
    assert [packet.mss for packet in arriving] == [expected]


def captured(capture: Capture, taste: Callable[[Packet], bool], timeout: float = 5.0) -> list[Packet]:
    """Return the first packets that `taste` accepts."""
    until = time.monotonic() + timeout
    found: list[Packet] = []
    while not found and time.monotonic() < until:
        found = [packet for packet in capture.packets() if taste(packet)]
    capture.close()
    return found


@FAMILIES
def test_traffic_is_refused_when_the_tunnel_is_gone(region: Region, family: int) -> None:
    """After kill -9 device and routes are gone. Pods get an ICMP error at once, nothing leaves in clear."""
    uplink = region.node.call(Capture, "uplink")
    region.pod.call(send, None, FAR_POD[family], 1111)
    clear = captured(uplink, lambda packet: packet.destination == FAR_POD[family])
    # control: without the host state it takes the default route
    assert [packet.ports[1] for packet in clear] == [1111]

    region.apply(gateway())
    region.tun.close()
    uplink = region.node.call(Capture, "uplink")

    def refused() -> str:
        try:
            socket.create_connection((FAR_POD[family], 2222), timeout=5).close()
        except OSError as error:
            return type(error).__name__ if error.errno is None else os.strerror(error.errno)
        return "connected"

    assert region.pod.call(refused) == {4: "No route to host", 6: "Network is unreachable"}[family]
    with pytest.raises(OSError, match=r"unreachable|No route"):
        region.node.call(send, None, FAR_POD[family], 2222)
    region.pod.call(send, None, {4: "192.0.2.1", 6: "2001:db8::1"}[family], 3333)  # the capture still works
    seen = captured(uplink, lambda packet: packet.protocol == UDP)
    assert [packet.ports[1] for packet in seen] == [3333]


@FAMILIES
def test_packets_from_the_tunnel_for_an_unknown_prefix_are_refused(region: Region, family: int) -> None:
    """The sender knows a region that this node does not know (any more). The packet must not leave in clear."""
    astray = {4: "198.51.100.9", 6: "2001:db8:9::9"}[family]
    region.apply(replace(gateway(), packet_filter=None))
    uplink = region.node.call(Capture, "uplink")
    region.into_tunnel(udp(FAR_POD[family], astray, 7000, 1111))
    clear = captured(uplink, lambda packet: packet.destination == astray)
    assert [packet.ports[1] for packet in clear] == [1111]  # control: without the filter it leaves in clear

    region.apply(gateway())
    uplink = region.node.call(Capture, "uplink")
    region.into_tunnel(udp(FAR_POD[family], astray, 7000, 2222))

    refusal = region.out_of_tunnel(to(FAR_POD[family], {4: ICMP, 6: ICMPV6}[family]))
    assert refusal is not None
    assert refusal.payload[:2] == {4: b"\3\0", 6: b"\1\0"}[family]  # network unreachable; no route
    region.node.call(send, None, astray, 3333)  # the capture still works; packets of this host are not affected
    seen = captured(uplink, lambda packet: packet.protocol == UDP)
    assert [packet.ports[1] for packet in seen] == [3333]


def test_replies_to_flows_masqueraded_by_this_host_are_accepted(region: Region) -> None:
    """A LAN machine that is no node gets an accepted source from another program's rule."""
    region.node.sh("iptables-legacy -t nat -A POSTROUTING -s 10.0.0.77 -j SNAT --to-source 10.244.1.1")
    region.node.sh("ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent")
    region.apply(gateway())
    uplink = region.node.call(Capture, "uplink")

    def from_the_lan() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
            sock.bind(("eth0", 0))
            mac = sock.getsockname()[4]
            sock.sendto(udp("10.0.0.77", "10.244.2.9", 7000, 7001), ("uplink", 0x0800, 0, 0, mac))

    region.node.call(from_the_lan)
    packet = region.out_of_tunnel(to("10.244.2.9"))
    assert packet is not None
    assert packet.source == "10.244.1.1"
    region.into_tunnel(udp("10.244.2.9", "10.244.1.1", 7001, packet.ports[0]))

    answers = captured(uplink, lambda packet: packet.destination == "10.0.0.77")
    assert [packet.ports for packet in answers] == [(7001, 7000)]


def test_outer_packets_never_enter_their_own_tunnel(region: Region) -> None:
    """The rule at preference 98 applies even where a remote prefix covers a peer's address."""
    wanted = gateway()
    region.apply(wanted)
    uplink = region.node.call(Capture, "uplink")

    def outer(port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("10.0.0.5", port))
            sock.sendto(b"outer", ("10.244.2.9", 4500))

    region.node.call(outer, 4500)
    region.node.call(outer, 4501)

    assert [packet.ports[0] for packet in captured(uplink, lambda packet: packet.protocol == UDP)] == [4500]
    inner = region.out_of_tunnel(to("10.244.2.9"))
    assert inner is not None
    assert inner.ports[0] == 4501
