"""What this node says about itself in its Peer. Pure: everything it needs comes in as values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ravenvpn.agent.reports import Vitals
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PublicKey
from ravenvpn.k8s.peer_outbox import PeerContent, PeerStatusCondition, PeerStatusReport
from ravenvpn.mesh.conflict import Conflict, ConflictKind
from ravenvpn.mesh.hoststate import Address
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import HostPort, NodeInfo, PeerObject, World
from ravenvpn.mesh.nodeplan import NodeRole
from ravenvpn.mesh.own_region import own_sources
from ravenvpn.mesh.situation import Intent
from ravenvpn.mesh.tunnel_port import listen_port
from ravenvpn.node.discovery import LocalAddress


class OwnPeer:
    """Of one node: what does not change while it runs. `addresses` are where the operator says others may try it."""

    def __init__(
        self,
        node: str,
        key: PublicKey,
        suites: Iterable[Suite],
        addresses: tuple[HostPort, ...],
        intent: Intent,
    ) -> None:
        self._node, self._key, self._suites = node, key, tuple(sorted(suites, key=lambda suite: suite.value))
        self._addresses, self._intent = addresses, intent

    def content(
        self, world: World, role: NodeRole, region: str, facts: LocalFacts, present: Iterable[LocalAddress]
    ) -> PeerContent:
        """`present` are this host's addresses with their devices."""
        gateway = world.gateways.get(region)
        info = next((one for one in gateway.status.nodes if one.node == self._node), None) if gateway else None
        lan = _lan(info, present)
        described = PeerObject(
            name=self._node,
            public_key=self._key.raw,
            # What our own Peer says is left out: an answer that was right once would stay for ever.
            listen_port=listen_port(self._node, gateway, None, self._intent.listen_port),
            addresses=self._addresses,
            node_addresses=lan,
            suites=self._suites,
        )
        sources, _ = own_sources(info, described, facts, self._intent.forward_node_ip)
        described = replace(described, sources=tuple(sources[family] for family in sorted(sources)))
        return PeerContent(described, region, role.label)


def _lan(info: NodeInfo | None, present: Iterable[LocalAddress]) -> tuple[Address, ...]:
    """One address a family of the device that has the node's InternalIP; that one for its family."""
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


def status_report(
    version: str, dataplane: str, vitals: Vitals, unready: Sequence[str], conflicts: Iterable[Conflict]
) -> PeerStatusReport:
    """The status of our Peer; `conflicts` are those that our key is in."""
    conditions = [
        PeerStatusCondition("Ready", not unready, "NotReady" if unready else "DataPathWorks", "; ".join(unready[:3])),
    ]
    shared = sorted(map(str, conflicts))
    conditions.append(
        PeerStatusCondition(
            "KeyIsOurs", not shared, "DuplicateKey" if shared else "NobodyElseHasIt", "; ".join(shared[:3])
        )
    )
    return PeerStatusReport(version, dataplane, vitals.sessions_wanted, vitals.sessions_up, tuple(conditions))


def key_conflicts(node: str, conflicts: Iterable[Conflict]) -> list[Conflict]:
    """Those in which this node's key is at issue, whoever wins."""
    name = f"Peer {node}"
    return [c for c in conflicts if c.kind is ConflictKind.DUPLICATE_KEY and name in (c.loser, c.winner)]
