"""Content and status of this node's own Peer object. Pure: inputs are values; `k8s.peer_writer` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ravenvpn.agent.reports import Vitals
from ravenvpn.k8s.peer_outbox import PeerContent, PeerStatusCondition, PeerStatusReport
from ravenvpn.mesh.conflict import Conflict, ConflictKind
from ravenvpn.mesh.hoststate import Address
from ravenvpn.mesh.model import NodeInfo, PeerObject
from ravenvpn.mesh.nodeplan import NodeRole
from ravenvpn.mesh.situation import Situation
from ravenvpn.mesh.sources import preferred_sources
from ravenvpn.mesh.tunnel_port import listen_port
from ravenvpn.node.discovery import LocalAddress

_SHOWN = 3  # reasons and conflicts in a condition's message; a condition is one line in `kubectl describe`


def peer_content(
    node: str, situation: Situation, role: NodeRole, region: str, present: Iterable[LocalAddress]
) -> PeerContent:
    """Return what the Peer of `node` has to contain.

    `role` and `region` are planned ones (region empty: none), `present` are this host's addresses with their devices.
    The situation must have a current key."""
    assert situation.keys.current is not None
    gateway = situation.world.gateways.get(region)
    info = next((one for one in gateway.status.nodes if one.node == node), None) if gateway else None
    described = PeerObject(
        name=node,
        public_key=situation.keys.current.public.raw,
        # Our present Peer is not consulted (None): it would confirm its own port for ever, whatever the Gateway has.
        listen_port=listen_port(node, gateway, None, situation.intent.listen_port),
        addresses=situation.intent.addresses,
        node_addresses=_lan_addresses(info, present),
        suites=tuple(sorted(situation.intent.suites, key=lambda suite: suite.value)),
    )
    sources = preferred_sources(info, described, situation.facts)
    described = replace(described, sources=tuple(sources[family] for family in sorted(sources)))
    return PeerContent(described, region, role.label)


def _lan_addresses(info: NodeInfo | None, present: Iterable[LocalAddress]) -> tuple[Address, ...]:
    """Return at most one address a family, IPv4 first, of the device that has the node's InternalIP.

    The InternalIP is the one of its family. Pod addresses (of a bridge with the InternalIP) are not LAN addresses."""
    if info is None or info.private_ip is None:
        return ()
    found: dict[int, Address] = {}
    by_device: dict[str, list[Address]] = {}
    for item in present:
        by_device.setdefault(item.device, []).append(item.address.ip)
    for addresses in by_device.values():
        if info.private_ip in addresses:
            found[info.private_ip.version] = info.private_ip
            for address in addresses:
                if not any(address.version == prefix.version and address in prefix for prefix in info.subnets):
                    found.setdefault(address.version, address)
    return tuple(found[version] for version in sorted(found))


def peer_status(
    version: str, dataplane: str, vitals: Vitals, unready: Sequence[str], conflicts: Iterable[Conflict]
) -> PeerStatusReport:
    """Return the status of our Peer.

    `version` is ravenvpn's, `dataplane` the body that runs, `unready` why the data path does not work (empty: it
    does), `conflicts` those over our public key (`key_conflicts`)."""
    shared = sorted(map(str, conflicts))
    # Types and reasons are CamelCase words, as the Kubernetes API conventions ask ("Typical status properties").
    conditions = (
        PeerStatusCondition(
            "Ready", not unready, "NotReady" if unready else "DataPathWorks", "; ".join(unready[:_SHOWN])
        ),
        PeerStatusCondition(
            "KeyIsOurs", not shared, "DuplicateKey" if shared else "NobodyElseHasIt", "; ".join(shared[:_SHOWN])
        ),
    )
    return PeerStatusReport(version, dataplane, vitals.sessions_wanted, vitals.sessions_up, conditions)


def key_conflicts(node: str, conflicts: Iterable[Conflict]) -> list[Conflict]:
    """Return the conflicts over this node's public key, whether it wins or loses them.

    The winner has to know as well: the other node was started with a copy of its key, or of its disk."""
    name = f"Peer {node}"
    return [c for c in conflicts if c.kind is ConflictKind.DUPLICATE_KEY and name in (c.loser, c.winner)]
