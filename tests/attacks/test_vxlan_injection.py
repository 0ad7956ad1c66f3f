"""Injection by VXLAN: one unauthenticated datagram to UDP 4472 of a gateway must not reach a pod of another region.

Attackers are hosts on the internet and on the LAN, pods of the same node, of another node and of another region, with
their own address or with that of a node of the region.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from lab.lab_mesh import LabMesh

from ravenvpn.lab import Lab, LabHost, Nat, Region
from ravenvpn.lab.agents import wait_until
from ravenvpn.mesh import identity, vxlan

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("ip", "nft", "nsenter", "unshare", "sysctl"),
    pytest.mark.timeout(180),
]

GATEWAY = "cloud-1"
MARKER = b"injected"
MARKER_PORT = 4243  # port of the pod that would receive it
QUIET = 0.5  # seconds without an arrival; a legitimate frame takes a few milliseconds


@pytest.fixture(scope="module")
def mesh() -> Iterator[LabMesh]:
    with Lab(
        Region("cloud", nodes=2),
        Region("factory", nodes=2, nat=Nat.PORT_RESTRICTED),
        Region("ship"),
    ) as lab:
        mesh = LabMesh.prepared(lab)
        mesh.start_all()
        yield mesh


@pytest.fixture(scope="module")
def target(mesh: LabMesh) -> Iterator[socket.socket]:
    """Return the socket of a pod in another region, at which injected packets would arrive."""
    pod = mesh.lab.pod("factory-1-pod-1")
    with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind((str(pod.v4), MARKER_PORT))
        one.settimeout(QUIET)
        yield one


def checksum(header: bytes) -> int:
    """Return the internet checksum of a header of even length (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4_udp(source: IPv4Address, destination: IPv4Address, ports: tuple[int, int], payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram, without UDP checksum (RFC 768 allows that)."""
    udp = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0)
    head += source.packed + destination.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp


def forged_frame(mesh: LabMesh) -> bytes:
    """Return the payload of a VXLAN datagram whose inner packet claims to come from a pod of the gateway's region."""
    lab = mesh.lab
    inner = ipv4_udp(lab.pod("cloud-2-pod-1").v4, lab.pod("factory-1-pod-1").v4, (4242, MARKER_PORT), MARKER)
    mac = bytes.fromhex(identity.vxlan_mac(GATEWAY, mesh.node(GATEWAY).v4).replace(":", ""))
    ethernet = mac + bytes.fromhex("aa0f01020304") + b"\x08\x00"
    return struct.pack("!II", 1 << 27, vxlan.VNI << 8) + ethernet + inner  # RFC 7348: flag I, then the VNI


def send(mesh: LabMesh, attacker: LabHost) -> None:
    """Send three forged frames from an attacker's own address."""
    with attacker.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _ in range(3):
            one.sendto(forged_frame(mesh), (str(mesh.node(GATEWAY).v4), vxlan.PORT))


def send_as(mesh: LabMesh, attacker: LabHost, source: IPv4Address) -> None:
    """Send three forged frames with another outer source address."""
    gateway = mesh.node(GATEWAY).v4
    outer = ipv4_udp(source, gateway, (5555, vxlan.PORT), forged_frame(mesh))
    with attacker.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as one:
        for _ in range(3):
            one.sendto(outer, (str(gateway), 0))


def arrived(target: socket.socket) -> bool:
    """Return whether a marker arrives. All datagrams that arrive are read."""
    found = False
    while True:
        try:
            found |= target.recv(2048) == MARKER
        except TimeoutError:
            return found


def attacker_of(mesh: LabMesh, name: str) -> LabHost:
    lab = mesh.lab
    return {
        "a host of another region": lambda: lab.node("ship-1"),
        "the internet": lambda: lab.internet,
        "a host on the LAN": lambda: lab.router("cloud"),
        "a pod of the gateway": lambda: lab.pod("cloud-1-pod-1"),
        "a pod of another node": lambda: lab.pod("cloud-2-pod-1"),
        "a pod of another region": lambda: lab.pod("factory-1-pod-1"),
    }[name]()


def test_a_frame_from_a_node_of_the_region_arrives(mesh: LabMesh, target: socket.socket) -> None:
    """The positive control: the same frame passes if a node of the region sends it."""

    def passes() -> bool:
        send(mesh, mesh.node("cloud-2"))
        return arrived(target)

    wait_until(passes, "a frame from cloud-2 arrives")


@pytest.mark.parametrize(
    "name",
    [
        "a host of another region",
        "the internet",
        "a host on the LAN",
        "a pod of the gateway",
        "a pod of another node",
        "a pod of another region",
    ],
)
def test_a_frame_from_elsewhere_is_dropped(mesh: LabMesh, target: socket.socket, name: str) -> None:
    send(mesh, attacker_of(mesh, name))
    assert not arrived(target)


@pytest.mark.parametrize("name", ["a pod of the gateway", "a pod of another node"])
def test_a_pod_cannot_use_the_address_of_a_node(mesh: LabMesh, target: socket.socket, name: str) -> None:
    """The route back to the node does not lead to the pod, so the frame is dropped where it leaves the pod."""
    send_as(mesh, attacker_of(mesh, name), mesh.node("cloud-2").v4)
    assert not arrived(target)


def test_dropped_frames_are_counted(mesh: LabMesh, target: socket.socket) -> None:
    send(mesh, mesh.lab.internet)
    assert not arrived(target)
    rules = mesh.node(GATEWAY).run(["nft", "list", "chain", "inet", "ravenvpn", "vxlan"]).stdout
    counted = [line for line in rules.splitlines() if "VXLAN from elsewhere" in line]
    assert counted
    assert "packets 0 " not in counted[0]
