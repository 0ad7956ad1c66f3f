"""The Python body: the specification of the data plane, and the body on hosts where the native one was not built.

This class implements the contract's methods. Packets pass `outbound` (TUN → UDP) and `inbound` (UDP → TUN), which
share the peers, the keypair table, the prefixes, the transmitter and the event queue.
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
from ravenvpn.dataplane.events import CounterSet, EventQueue, by_drop
from ravenvpn.dataplane.inbound import Inbound
from ravenvpn.dataplane.keypairs import KeypairTable
from ravenvpn.dataplane.outbound import Outbound
from ravenvpn.dataplane.peers import NO_LIMIT, DataPlanePeer, Staged, socket_address, source_ancillary
from ravenvpn.dataplane.pump import Pump
from ravenvpn.dataplane.transmitter import AF41, Batch, BorrowedSocket, Transmitter
from ravenvpn.offloads import Offloads
from ravenvpn.prefixes import Prefix

KEEPALIVE = Staged(b"")


class PureDataPlane:
    """See `contract.DataPlane`, which documents every public method.

    Everything runs on the loop's thread. What a mutator changes is in force for the next packet; caches of look-ups
    are emptied by `_prefixes_changed`.
    """

    name = "pure"

    def __init__(
        self, *, tun: int | None, offloads: Offloads, timing: Timing, clock: Callable[[], float], boot_id: str
    ) -> None:
        self._tun = tun
        self._offloads = offloads  # allowed; `offloads()` returns those in force
        self._clock = clock
        self._boot_id = boot_id
        self._frozen = False
        self._counters = CounterSet()
        self._events = EventQueue(self._counters)
        self._peers: dict[PeerId, DataPlanePeer] = {}
        self._keypairs = KeypairTable(self._events, timing)
        self._routes: Routes[DataPlanePeer] = Routes()
        self._acceptance: Acceptance[DataPlanePeer] = Acceptance()
        self._transmitter = Transmitter(self._counters, gso=offloads.udp_gso, gro=offloads.udp_gro)
        self._outbound = Outbound(
            tun=tun,
            transmitter=self._transmitter,
            routes=self._routes,
            events=self._events,
            counters=self._counters,
            timing=timing,
        )
        self._inbound = Inbound(
            tun=tun,
            keypairs=self._keypairs,
            acceptance=self._acceptance,
            events=self._events,
            counters=self._counters,
            offloads=offloads,
        )
        self._inbound.on_promoted = self._outbound.send_staged
        self._pump = Pump(tun, self._transmitter, self._outbound, self._inbound, clock)

    # Life.

    def start(self, loop: asyncio.AbstractEventLoop, on_events: Callable[[], None]) -> None:
        if self._frozen:
            raise ValueError("a frozen data plane does not start again: thaw its blob in a new one")
        self.stop()
        self._pump.start(loop)
        self._events.set_listener(lambda: self._pump.call_soon(on_events))

    def stop(self) -> None:
        self._pump.stop()
        self._events.clear_listener()

    def set_sockets(self, v4: int | None, v6: int | None) -> None:
        self._pump.unregister()
        self._transmitter.set_sockets(v4, v6)
        self._inbound.sockets_changed()
        for peer in self._peers.values():
            peer.set_source(None)
        self._pump.register()

    def pump_replaced_socket(self, fd: int, ipv6: bool) -> None:
        if self._frozen:
            return
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        one = BorrowedSocket(family, socket.SOCK_DGRAM, socket.IPPROTO_UDP, fd)
        try:
            self._inbound.pump_replaced(one, self._clock())
        finally:
            one.detach()

    def set_mtu(self, mtu: int) -> None:
        if not 0 <= mtu <= 65535:
            raise ValueError(f"no MTU: {mtu}")
        self._outbound.mtu = mtu

    def set_offloads(self, offloads: Offloads) -> None:
        self._offloads = offloads
        refused = self._counters.fallbacks
        self._outbound.flush()
        self._transmitter.set_gso(offloads.udp_gso and "udp_gso" not in refused)
        self._transmitter.set_gro(offloads.udp_gro, self._drain)
        coalescer = self._inbound.coalescer
        coalescer.tcp = offloads.tun_gro and "tun_gro" not in refused
        coalescer.udp = offloads.tun_gro_udp and "tun_gro_udp" not in refused

    def set_own_address(self, address: IPv6Address | None, probe_port: int) -> None:
        if not 0 < probe_port < 1 << 16:
            raise ValueError(f"no UDP port: {probe_port}")
        self._inbound.own_address = b"" if address is None else address.packed
        self._inbound.probe_port = probe_port.to_bytes(2, "big")

    # Peers.

    def add_peer(self, peer: PeerId) -> None:
        if peer not in self._peers:
            self._peers[peer] = DataPlanePeer(peer)

    def remove_peer(self, peer: PeerId) -> None:
        gone = self._peers[peer]
        self._outbound.flush()
        self._keypairs.drop_all(gone)
        self._routes.remove_peer(gone)
        self._acceptance.remove_peer(gone)
        self._prefixes_changed()
        self._events.discard(gone)
        del self._peers[peer]

    def set_endpoint(self, peer: PeerId, endpoint: Endpoint | None, source: Source | None = None) -> None:
        there = self._peers[peer]
        if endpoint is None:
            there.set_address(None, 0)
            return
        address, family = socket_address(endpoint)
        if address != there.address:
            there.set_address(address, family)
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
        self._outbound.routes_changed()

    def accept(self, peer: PeerId, add: Sequence[Prefix] = (), remove: Sequence[Prefix] = ()) -> None:
        sender = self._peers[peer]
        for prefix in remove:
            self._acceptance.remove(sender, prefix)
        for prefix in add:
            self._acceptance.add(sender, prefix)
        self._inbound.acceptance_changed()

    # Keypairs.

    def install_keypair(self, peer: PeerId, keypair: NewKeypair) -> None:
        self._refuse_if_frozen()
        owner = self._peers[peer]
        self._keypairs.install(owner, keypair)
        owner.handshake_ended()
        owner.gso_limit = NO_LIMIT  # the path may have become wider
        if keypair.role is Role.INITIATOR:
            now = self._clock()
            if not self._outbound.send_staged(owner, now):
                self.send_keepalive(peer)

    def expire_keypairs(self, peer: PeerId) -> None:
        owner = self._peers[peer]
        for keypair in (owner.previous, owner.current, owner.next):
            if keypair is not None:
                keypair.sends = False

    def drop_keypairs(self, peer: PeerId) -> None:
        owner = self._peers[peer]
        self._keypairs.drop_all(owner)
        owner.handshake_requested_at = -1.0

    def purge_staged(self, peer: PeerId) -> None:
        owner = self._peers[peer]
        self._counters.count_drop(Drop.STAGED_EXPIRED, len(owner.staged))
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
        self._transmitter.send(Batch(bytes(data), len(data), 1, None, address, family, ancillary, AF41))

    # Observation.

    def drain_events(self, max_initiations: int = MAX_DATAGRAMS) -> list[Event]:
        return self._events.drain(max_initiations)

    def waiting_initiations(self) -> int:
        return self._events.waiting_initiations

    def counters(self) -> Counters:
        counters = self._counters
        return Counters(
            by_drop(counters.drops),
            {peer.id: peer.counters() for peer in self._peers.values()},
            dict(counters.fallbacks),
            counters.tun_rx_packets,
            counters.tun_tx_packets,
            counters.udp_rx_datagrams,
            counters.udp_tx_datagrams,
            counters.tun_reads,
            counters.tun_writes,
            counters.udp_reads,
            counters.udp_writes,
        )

    def offloads(self) -> Offloads:
        coalescer = self._inbound.coalescer
        return replace(
            self._offloads,
            tun_gro=coalescer.tcp,
            tun_gro_udp=coalescer.udp,
            tun_batch=False,
            udp_gso=self._transmitter.gso,
            udp_gro=self._transmitter.gro,
        )

    # For session hand-over on restart.

    def freeze(self) -> bytes:
        self.stop()
        self._frozen = True
        self._transmitter.set_sockets(None, None)
        return handover.pack(list(self._peers.values()), boot_id=self._boot_id, now=self._clock())

    def thaw(self, blob: bytes) -> None:
        self._refuse_if_frozen()
        frozen = handover.parse(blob, boot_id=self._boot_id)
        now = self._clock()
        # Everything is checked before anything is restored: a damaged blob must change nothing.
        handover.check(frozen, known=self._peers.keys(), indices=self._keypairs.by_index.keys())
        for each in frozen.peers:
            peer = self._peers.setdefault(PeerId(each.id), DataPlanePeer(PeerId(each.id)))
            handover.restore_peer(each, peer)
            for one in each.sessions:
                keypair = self._keypairs.register(peer, one.keypair())
                handover.restore_keypair(one, keypair, frozen_at=frozen.frozen_at, now=now)
                setattr(peer, one.slot, keypair)
            self._events.mark_changed(peer)

    def _send(self, peer: DataPlanePeer, staged: Staged) -> None:
        self._refuse_if_frozen()
        self._outbound.send(peer, staged, self._clock())
        self._outbound.flush()

    def _drain(self, one: socket.socket) -> None:
        self._inbound.drain(one, self._clock())

    def _refuse_if_frozen(self) -> None:
        if self._frozen:
            raise ValueError("a frozen data plane sends nothing")

    def _prefixes_changed(self) -> None:
        self._outbound.routes_changed()
        self._inbound.acceptance_changed()
