"""The Python body: the specification of the data plane, and what runs where no native body could be built.

This class is the contract's surface. The packets' ways are `egress` (TUN → UDP) and `ingress` (UDP → TUN); what both
share are the peers, the sessions by index, the prefixes, the outer sockets and the event queue.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv6Address

from ravenvpn.dataplane import handover
from ravenvpn.dataplane.contract import (
    MAX_DATAGRAMS,
    Counters,
    Drop,
    Endpoint,
    Event,
    NewKeypair,
    PeerId,
    Role,
    Source,
    Timing,
)
from ravenvpn.dataplane.cryptokey_routing import Acceptance, Routes
from ravenvpn.dataplane.events import EventQueue, Tally, by_drop
from ravenvpn.dataplane.inbound import Inbound
from ravenvpn.dataplane.keypairs import KeypairTable
from ravenvpn.dataplane.outbound import Outbound
from ravenvpn.dataplane.peers import NO_LIMIT, DataPlanePeer, Staged, socket_address, source_ancillary
from ravenvpn.dataplane.pump import Pump
from ravenvpn.dataplane.transmitter import AF41, Batch, Borrowed, Transmitter
from ravenvpn.offloads import Offloads
from ravenvpn.prefixes import Prefix

KEEPALIVE = Staged(b"")


class PureDataPlane:
    """See `contract.DataPlane`."""

    name = "pure"

    def __init__(
        self, *, tun: int | None, offloads: Offloads, timing: Timing, clock: Callable[[], float], boot_id: str
    ) -> None:
        self._tun = tun
        self._offloads = offloads
        self._clock = clock
        self._boot_id = boot_id
        self._frozen = False
        self._tally = Tally()
        self._events = EventQueue(self._tally)
        self._peers: dict[PeerId, DataPlanePeer] = {}
        self._sessions = KeypairTable(self._events, timing)
        self._routes: Routes[DataPlanePeer] = Routes()
        self._acceptance: Acceptance[DataPlanePeer] = Acceptance()
        self._outer = Transmitter(self._tally, gso=offloads.udp_gso, gro=offloads.udp_gro)
        self._egress = Outbound(
            tun=tun, outer=self._outer, routes=self._routes, events=self._events, tally=self._tally, timing=timing
        )
        self._ingress = Inbound(
            tun=tun,
            sessions=self._sessions,
            acceptance=self._acceptance,
            events=self._events,
            tally=self._tally,
            offloads=offloads,
        )
        self._ingress.on_promoted = self._egress.send_staged
        self._pump = Pump(tun, self._outer, self._egress, self._ingress, clock)

    # Life.

    def start(self, loop: asyncio.AbstractEventLoop, on_events: Callable[[], None]) -> None:
        if self._frozen:
            raise ValueError("a frozen data plane does not start again: thaw its blob in a new one")
        self.stop()
        self._pump.start(loop)
        self._events.listen(lambda: self._pump.call_soon(on_events))

    def stop(self) -> None:
        self._pump.stop()
        self._events.ignore()

    def set_sockets(self, v4: int | None, v6: int | None) -> None:
        self._pump.pause()
        self._outer.use(v4, v6)
        self._ingress.sockets_changed()
        for peer in self._peers.values():
            peer.set_source(None)
        self._pump.go_on()

    def pump_replaced_socket(self, fd: int, ipv6: bool) -> None:
        if self._frozen:
            return
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        one = Borrowed(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP, fd)
        try:
            self._ingress.pump_replaced(one, self._clock())
        finally:
            one.detach()

    def set_mtu(self, mtu: int) -> None:
        if not 0 <= mtu <= 65535:
            raise ValueError(f"no MTU: {mtu}")
        self._egress.mtu = mtu

    def set_offloads(self, offloads: Offloads) -> None:
        self._offloads = offloads
        refused = self._tally.fallbacks
        self._egress.flush()
        self._outer.set_gso(offloads.udp_gso and "udp_gso" not in refused)
        self._outer.set_gro(offloads.udp_gro, self._drain)
        coalescer = self._ingress.coalescer
        coalescer.tcp = offloads.tun_gro and "tun_gro" not in refused
        coalescer.udp = offloads.tun_gro_udp and "tun_gro_udp" not in refused

    def set_own_address(self, address: IPv6Address | None, probe_port: int) -> None:
        if not 0 < probe_port < 1 << 16:
            raise ValueError(f"no UDP port: {probe_port}")
        self._ingress.own_address = b"" if address is None else address.packed
        self._ingress.probe_port = probe_port.to_bytes(2, "big")

    # Peers.

    def add_peer(self, peer: PeerId) -> None:
        if peer not in self._peers:
            self._peers[peer] = DataPlanePeer(peer)

    def remove_peer(self, peer: PeerId) -> None:
        gone = self._peers[peer]
        self._egress.flush()
        self._sessions.drop_all(gone)
        self._routes.remove_peer(gone)
        self._acceptance.remove_peer(gone)
        self._prefixes_changed()
        self._events.forget(gone)
        del self._peers[peer]

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        there = self._peers[peer]
        if endpoint is None:
            there.move(None, 0)
            return
        address, family = socket_address(endpoint)
        if address != there.address:
            there.move(address, family)
            there.set_source(source)
        elif source is not None:
            there.set_source(source)

    def set_roaming(self, peer: PeerId, roaming: bool) -> None:
        self._peers[peer].roaming = roaming

    def clear_source(self, peer: PeerId) -> None:
        self._peers[peer].set_source(None)

    # Prefixes.

    def route(self, prefix: Prefix, peers: Sequence[PeerId]) -> None:
        self._routes.set(prefix, tuple([self._peers[peer] for peer in peers]))
        self._egress.routes_changed()

    def accept(self, peer: PeerId, add: Sequence[Prefix] = (), remove: Sequence[Prefix] = ()) -> None:
        sender = self._peers[peer]
        for prefix in remove:
            self._acceptance.remove(sender, prefix)
        for prefix in add:
            self._acceptance.add(sender, prefix)
        self._ingress.acceptance_changed()

    # Sessions.

    def install_keypair(self, peer: PeerId, keypair: NewKeypair) -> None:
        self._refuse_if_frozen()
        owner = self._peers[peer]
        self._sessions.install(owner, keypair)
        owner.handshake_ended()
        owner.gso_limit = NO_LIMIT  # the path may have become wider
        if keypair.role is Role.INITIATOR:
            now = self._clock()
            if not self._egress.send_staged(owner, now):
                self.send_keepalive(peer)

    def expire_keypairs(self, peer: PeerId) -> None:
        owner = self._peers[peer]
        for session in (owner.previous, owner.current, owner.next):
            if session is not None:
                session.sends = False

    def drop_keypairs(self, peer: PeerId) -> None:
        owner = self._peers[peer]
        self._sessions.drop_all(owner)
        owner.asked = -1.0

    def purge_staged(self, peer: PeerId) -> None:
        owner = self._peers[peer]
        self._tally.drop(Drop.STAGED_EXPIRED, len(owner.staged))
        owner.staged.clear()
        owner.handshake_ended()

    # Sending.

    def send_keepalive(self, peer: PeerId) -> None:
        self._send(self._peers[peer], KEEPALIVE)

    def send_inner(self, peer: PeerId, packet: bytes, outer_df: bool = False) -> None:
        if not 20 <= len(packet) <= 65535 - 80:
            raise ValueError(f"no IP packet: {len(packet)} bytes")
        self._send(self._peers[peer], Staged(bytes(packet), outer_df))

    def send_datagram(self, data: bytes, endpoint: Endpoint, source: Source | None = None) -> None:
        address, family = socket_address(endpoint)
        ancillary = [] if source is None else source_ancillary(source, family)
        self._refuse_if_frozen()
        self._outer.send(Batch(bytes(data), len(data), 1, None, address, family, ancillary, AF41))

    # Looking.

    def drain_events(self, max_initiations: int = MAX_DATAGRAMS) -> list[Event]:
        return self._events.take(max_initiations)

    def waiting_initiations(self) -> int:
        return self._events.waiting_initiations

    def counters(self) -> Counters:
        tally = self._tally
        return Counters(
            by_drop(tally.drops),
            {peer.id: peer.counters() for peer in self._peers.values()},
            dict(tally.fallbacks),
            tally.tun_rx_packets,
            tally.tun_tx_packets,
            tally.udp_rx_datagrams,
            tally.udp_tx_datagrams,
            tally.tun_reads,
            tally.tun_writes,
            tally.udp_reads,
            tally.udp_writes,
        )

    def offloads(self) -> Offloads:
        coalescer = self._ingress.coalescer
        return replace(
            self._offloads,
            tun_gro=coalescer.tcp,
            tun_gro_udp=coalescer.udp,
            tun_batch=False,
            udp_gso=self._outer.gso,
            udp_gro=self._outer.gro,
        )

    # Hand-over.

    def freeze(self) -> bytes:
        self.stop()
        self._frozen = True
        self._outer.use(None, None)
        return handover.pack(list(self._peers.values()), boot_id=self._boot_id, now=self._clock())

    def thaw(self, blob: bytes) -> None:
        self._refuse_if_frozen()
        frozen = handover.parse(blob, boot_id=self._boot_id)
        now = self._clock()
        # Into tables of their own first: a blob that turns out wrong half-way must change nothing.
        handover.check(frozen, known=self._peers.keys(), indices=self._sessions.by_index.keys())
        for each in frozen.peers:
            peer = self._peers.setdefault(PeerId(each.id), DataPlanePeer(PeerId(each.id)))
            handover.revive(each, peer)
            for one in each.sessions:
                session = self._sessions.open(peer, one.keypair())
                handover.revive_session(one, session, frozen_at=frozen.frozen_at, now=now)
                setattr(peer, one.slot, session)
            self._events.moved(peer)

    def _send(self, peer: DataPlanePeer, staged: Staged) -> None:
        self._refuse_if_frozen()
        self._egress.send(peer, staged, self._clock())
        self._egress.flush()

    def _drain(self, one: socket.socket) -> None:
        self._ingress.drain(one, self._clock())

    def _refuse_if_frozen(self) -> None:
        if self._frozen:
            raise ValueError("a frozen data plane sends nothing")

    def _prefixes_changed(self) -> None:
        self._egress.routes_changed()
        self._ingress.acceptance_changed()
