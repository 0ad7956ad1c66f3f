"""Models of two CNIs: how pods are attached to their node, and how nodes of a region reach each other's pods.

`BRIDGE`: a bridge with an address inside the node's podCIDR, and a route to the podCIDR of each other node (flannel's
backend host-gw).

`CALICO`, as docs.tigera.io describes it without an overlay: no bridge, and no address of the node among the pods; a
device `cali…` and a host route for each pod; the pod's gateway is an address that no host has, for which the node
answers (proxy ARP); the unused rest of the node's blocks is a blackhole; reverse paths are checked strictly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ravenvpn.lab.devices import Wiring, configure, default_routes, veth
from ravenvpn.lab.host import LabNode, Pod
from ravenvpn.lab.topology import Cni

_CALICO_MAC = "ee:ee:ee:ee:ee:ee"  # of every cali… device
_CALICO_V4, _CALICO_V6 = "169.254.1.1", "fe80::ecee:eeff:feee:eeee"  # a pod's gateways; IPv6 follows from the MAC
_BIRD = 12  # RTPROT_BIRD, rtnetlink.h: the routing daemon that writes Calico's routes


def attach_pods(node: LabNode, wiring: Wiring) -> None:
    """Add the lines that attach a node's pods to it."""
    if node.region.cni is Cni.CALICO:
        _attach_calico(node, wiring)
    elif node.pods:
        _attach_bridge(node, wiring)


def _attach_bridge(node: LabNode, wiring: Wiring) -> None:
    """Make a bridge with the node's address in the podCIDR, which is the gateway of its pods."""
    here = node.namespace
    wiring.devices[here].append(f"link add {LabNode.BRIDGE} type bridge")
    wiring.settings[here] += configure(LabNode.BRIDGE, node.pod_cidrs.interface(1))
    for number, pod in enumerate(node.pods, 1):
        port = f"pod{number}"
        wiring.devices[here].append(veth(port, "eth0", pod.namespace))
        wiring.settings[here].append(f"link set {port} master {LabNode.BRIDGE} up")
        wiring.settings[pod.namespace] += [
            *configure("eth0", node.pod_cidrs.interface(number + 1)),
            *default_routes("eth0", node.pod_cidrs),
        ]


def _attach_calico(node: LabNode, wiring: Wiring) -> None:
    """Make a device and a host route for each pod, and blackhole routes for the node's blocks."""
    here = node.namespace
    wiring.settings[here] += [f"route add blackhole {cidr} proto {_BIRD}" for block in node.blocks for cidr in block]
    for pod in node.pods:
        device = host_device(pod)
        wiring.devices[here].append(veth(device, "eth0", pod.namespace))
        # The node has no address on these devices: it answers ARP and NDP for the gateway (`sysctls`).
        wiring.settings[here] += [
            f"link set {device} address {_CALICO_MAC} up",
            f"route add {pod.v4}/32 dev {device} scope link",
            f"route add {pod.v6}/128 dev {device}",
        ]
        wiring.settings[pod.namespace] += [
            f"address add {pod.v4}/32 dev eth0",
            f"address add {pod.v6}/128 dev eth0 nodad",
            "link set eth0 up",
            f"route add {_CALICO_V4} dev eth0 scope link",
            f"route add default via {_CALICO_V4} dev eth0",
            f"route add ::/0 via {_CALICO_V6} dev eth0",
        ]


def host_device(pod: Pod) -> str:
    """Return the name of the pod's device on its node with the Calico model.

    It is `cali` and 11 hex digits, the 15 characters that the kernel allows.
    """
    return f"cali{hashlib.sha256(pod.name.encode()).hexdigest()[:11]}"


def routes(node: LabNode, others: Sequence[LabNode]) -> Iterable[str]:
    """Yield the lines for a node's routes to the pods of `others`, the other nodes of its region, over the LAN."""
    protocol = f" proto {_BIRD}" if node.region.cni is Cni.CALICO else ""
    # A node without pods has no bridge, so there is nothing to route to.
    for other in others:
        for block in other.blocks if other.pods else ():
            yield f"route add {block.v4} via {other.v4} dev {LabNode.DEVICE}{protocol}"
            yield f"route add {block.v6} via {other.v6} dev {LabNode.DEVICE}{protocol}"


def sysctls(node: LabNode) -> dict[str, int]:
    """Return the sysctls that the CNI sets on a node once its devices exist, as felix (Calico's agent) does."""
    if node.region.cni is not Cni.CALICO:
        return {}
    settings = {"net.ipv4.conf.all.rp_filter": 1}
    for device in map(host_device, node.pods):
        settings |= {
            f"net.ipv4.conf.{device}.rp_filter": 1,
            f"net.ipv4.conf.{device}.proxy_arp": 1,
            f"net.ipv4.conf.{device}.forwarding": 1,
            f"net.ipv6.conf.{device}.proxy_ndp": 1,
            f"net.ipv4.neigh.{device}.proxy_delay": 0,
        }
    return settings
