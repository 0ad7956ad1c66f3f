"""How pods hang on a node and how a region's nodes reach each other's: two models of what CNIs do.

`BRIDGE`: a bridge with an address inside the node's podCIDR, and a route to each other node's podCIDR (host-gw, as
flannel calls it). `CALICO`, as docs.tigera.io describes it without an overlay: no bridge and no address among the
pods; a device `cali…` and a host route per pod; the pod's gateway is an address that nobody has, for which the node
answers; what is left of the node's blocks goes nowhere; reverse paths are checked strictly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ravenvpn.lab.devices import default_routes, up, veth
from ravenvpn.lab.host import LabNode, Pod
from ravenvpn.lab.topology import Cni

_CALICO_MAC = "ee:ee:ee:ee:ee:ee"
_CALICO_V4, _CALICO_V6 = "169.254.1.1", "fe80::ecee:eeff:feee:eeee"  # the second follows from the MAC
_BIRD = 12  # RTPROT_BIRD: who writes Calico's routes


def join(node: LabNode, devices: dict[str, list[str]], settings: dict[str, list[str]]) -> None:
    """Lines that hang the node's pods on it: `devices` first, in every namespace, then `settings`."""
    if node.region.cni is Cni.CALICO:
        _join_calico(node, devices, settings)
    elif node.pods:
        _join_bridge(node, devices, settings)


def _join_bridge(node: LabNode, devices: dict[str, list[str]], settings: dict[str, list[str]]) -> None:
    here = node.namespace
    devices[here].append(f"link add {LabNode.BRIDGE} type bridge")
    settings[here] += up(LabNode.BRIDGE, node.pod_cidrs.interface(1))
    for number, pod in enumerate(node.pods, 1):
        port = f"pod{number}"
        devices[here].append(veth(port, "eth0", pod.namespace))
        settings[here].append(f"link set {port} master {LabNode.BRIDGE} up")
        settings[pod.namespace] += [
            *up("eth0", node.pod_cidrs.interface(number + 1)),
            *default_routes("eth0", node.pod_cidrs).splitlines(),
        ]


def _join_calico(node: LabNode, devices: dict[str, list[str]], settings: dict[str, list[str]]) -> None:
    here = node.namespace
    settings[here] += [f"route add blackhole {cidr} proto {_BIRD}" for block in node.blocks for cidr in block]
    for pod in node.pods:
        device = device_of(pod)
        devices[here].append(veth(device, "eth0", pod.namespace))
        settings[here] += [
            f"link set {device} address {_CALICO_MAC} up",
            f"route add {pod.v4}/32 dev {device} scope link",
            f"route add {pod.v6}/128 dev {device}",
        ]
        settings[pod.namespace] += [
            f"address add {pod.v4}/32 dev eth0",
            f"address add {pod.v6}/128 dev eth0 nodad",
            "link set eth0 up",
            f"route add {_CALICO_V4} dev eth0 scope link",
            f"route add default via {_CALICO_V4} dev eth0",
            f"route add ::/0 via {_CALICO_V6} dev eth0",
        ]


def device_of(pod: Pod) -> str:
    """The pod's device on its node, where the CNI is Calico."""
    return f"cali{hashlib.sha256(pod.name.encode()).hexdigest()[:11]}"


def routes(node: LabNode, others: Sequence[LabNode]) -> Iterable[str]:
    """From a node to the pods of its region's other nodes, over their own network."""
    protocol = f" proto {_BIRD}" if node.region.cni is Cni.CALICO else ""
    for other in others:
        for block in other.blocks if other.pods else ():
            yield f"route add {block.v4} via {other.v4} dev {LabNode.DEVICE}{protocol}"
            yield f"route add {block.v6} via {other.v6} dev {LabNode.DEVICE}{protocol}"


def sysctls(node: LabNode) -> dict[str, int]:
    """What the CNI sets once its devices are there."""
    if node.region.cni is not Cni.CALICO:
        return {}
    wanted = {"net.ipv4.conf.all.rp_filter": 1}
    for device in map(device_of, node.pods):
        wanted |= {
            f"net.ipv4.conf.{device}.rp_filter": 1,
            f"net.ipv4.conf.{device}.proxy_arp": 1,
            f"net.ipv4.conf.{device}.forwarding": 1,
            f"net.ipv6.conf.{device}.proxy_ndp": 1,
            f"net.ipv4.neigh.{device}.proxy_delay": 0,
        }
    return wanted
