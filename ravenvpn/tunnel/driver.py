"""A running tunnel: TUN device, outer sockets, data plane and device on one event loop.

Decisions are made below, in `device` and in the data plane. Here clocks are read, callbacks are called, and kernel
objects are configured and closed; `linux.opener` opens or adopts them. Mutators may be called before `start`, and
each takes effect between two packets.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from ravenvpn import dataplane
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane import boottime
from ravenvpn.dataplane.contract import Counters, InnerPacket, PeerId, Timing
from ravenvpn.errors import HostError
from ravenvpn.offloads import Offloads
from ravenvpn.prefixes import Prefix
from ravenvpn.tunnel.admission.handshake_filter import HandshakeDrop
from ravenvpn.tunnel.device import Device, PeerStatus, SessionLost, SessionUp
from ravenvpn.tunnel.linux.opener import TunnelResources
from ravenvpn.tunnel.linux.tun import Tun
from ravenvpn.tunnel.loop_timer import LoopTimer
from ravenvpn.tunnel.named_peers import NamedPeers
from ravenvpn.tunnel.peer import WIREGUARD_ONLY
from ravenvpn.tunnel.replaced_sockets import ReplacedSockets


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    """A snapshot of the tunnel for people and programs."""

    device: str | None  # name of the TUN device; None without one
    up: bool
    mtu: int  # bytes; 0 without a TUN device
    listen_port: int
    fwmark: int  # 0 for none
    public_key: PublicKey | None
    body: str  # of the data plane: "pure" or "native"
    offloads: Offloads  # in force
    counters: Counters  # of the data plane
    handshake_drops: Mapping[HandshakeDrop, int]
    peers: tuple[PeerStatus, ...]  # oldest first
    prefixes: Mapping[str, Sequence[Prefix]]  # routed to or accepted from each peer, by name


@dataclass(slots=True)
class Listeners:
    """Callbacks of a tunnel, called on the loop. They may call the tunnel's mutators."""

    on_session_event: Callable[[SessionUp | SessionLost], None] = lambda _: None
    # Arguments: peer, whole inner packet to our probe port, whether its outer packet was marked CE.
    on_inner_packet: Callable[[str, bytes, bool], None] = lambda *_: None
    # The TUN device was deleted: this tunnel carries nothing any more, and another one has to be made.
    on_device_deleted: Callable[[], None] = lambda: None


class Tunnel:
    """One WireGuard interface of ours. `peers` holds the peers by name.

    Everything runs on one event loop. Bad arguments raise ValueError, the host's refusals HostError.
    """

    def __init__(
        self,
        resources: TunnelResources,
        *,
        timing: Timing | None = None,
        suites: frozenset[Suite] = WIREGUARD_ONLY,
        offloads: Offloads | None = None,
        listeners: Listeners | None = None,
        random: Callable[[int], bytes] = os.urandom,
        body: str | None = None,
    ) -> None:
        """`resources` belong to the tunnel, which closes them in `stop`, also if it was never started. `suites` is
        what we offer and accept. `offloads` may forbid some. `body` forces a data plane (see `dataplane.create`)."""
        timing = timing or Timing()
        self.private_key: PrivateKey | None = None  # to be read; `set_private_key` writes
        self._listeners = listeners or Listeners()
        self._resources: TunnelResources | None = resources
        self._timer = LoopTimer(self._on_timer)
        # The TUN device first: the data plane is told what the kernel granted.
        offloads = _apply_to_tun(resources.tun, offloads or Offloads())
        self._dataplane = dataplane.create(
            tun=None if resources.tun is None else resources.tun.fd, offloads=offloads, timing=timing, body=body
        )
        self._device = Device(self._dataplane, random=random, timing=timing, suites=suites)
        self.peers = NamedPeers(self._device, self._dataplane, self._timer.wake)
        self._replaced = ReplacedSockets(self._dataplane)
        self._port, self._mark = resources.sockets.port, resources.sockets.mark
        self._mtu = 0  # of the TUN device, as last seen
        self._up = False  # administrative state of the TUN device, as last seen

    # Life.

    def start(self) -> None:
        """Start on the running loop. The interface is up if the TUN device is, or if there is none."""
        assert self._resources is not None
        loop = asyncio.get_running_loop()
        self._dataplane.set_sockets(*self._resources.sockets.descriptors)
        self._resources.links.start(loop, self._on_links_changed)
        self._replaced.start(loop)
        if self._resources.tun is None:
            self._up = True
            self._device.set_up(boottime())
        else:
            self._check_device(self._resources.tun)
        self._dataplane.start(loop, self._timer.wake)
        self._timer.start(loop)

    def stop(self) -> None:
        """Stop and close everything, the TUN too, which deletes the device. Safe to call twice."""
        self._timer.stop()
        self._dataplane.stop()
        # The data plane must not keep descriptor numbers that soon mean other files.
        self._dataplane.set_sockets(None, None)
        self._replaced.stop()
        if self._resources is not None:
            self._resources.close()
            self._resources = None

    # Our side.

    def set_private_key(self, key: PrivateKey | None) -> None:
        """Set our static key. Sessions made with another key stop sending, and handshakes start again."""
        self.private_key = key
        self._device.set_private_key(key, boottime())
        self._timer.wake()

    def set_next_private_key(self, key: PrivateKey | None) -> None:
        """Answer initiations to this key as well. For key rotation; no caller yet."""
        self._device.set_next_private_key(key)

    def set_suites(self, suites: frozenset[Suite]) -> None:
        """Set the suites we offer and accept in new handshakes. Sessions in force keep theirs until they are
        rekeyed."""
        self._device.set_suites(suites)

    def set_offloads(self, offloads: Offloads) -> None:
        """Change which offloads are allowed, without losing a packet; the TUN device follows. Raises HostError, and
        changes nothing, if the TUN device refuses."""
        tun = self._resources.tun if self._resources is not None else None
        self._dataplane.set_offloads(_apply_to_tun(tun, offloads))

    def set_own_address(self, address: IPv6Address | None, probe_port: int) -> None:
        """Deliver inner UDP to this address and port to `Listeners.on_inner_packet` instead of the TUN device."""
        self._dataplane.set_own_address(address, probe_port)

    @property
    def listen_port(self) -> int:
        """The outer UDP port in use."""
        return self._port

    @property
    def ports(self) -> frozenset[int]:
        """The outer UDP ports that are read: the one in use, and former ones for a moment."""
        return self._replaced.ports | {self._port}

    @property
    def fwmark(self) -> int:
        """SO_MARK of outer packets, 0 for none."""
        return self._mark

    def listen(self, port: int | None = None, fwmark: int | None = None) -> None:
        """Change the outer port (0: a random one) or the mark; None leaves it as it is.

        No packet is lost: new sockets are bound before the old ones are given up, each peer with a session gets a
        keepalive from the new port, and the old sockets are read for two more seconds (`replaced_sockets`).
        All or nothing: raises PortInUseError, or HostError, and then everything is as before.
        """
        assert self._resources is not None
        before = self._resources.sockets
        mark = before.mark if fwmark is None else fwmark
        if port is not None and (port == 0 or port != before.port):
            sockets = self._replaced.reclaim(port) or self._resources.bind_sockets(port, mark)
            try:
                sockets.set_mark(mark)
            except HostError:
                sockets.close()
                raise
            self._resources.sockets = sockets
            self._dataplane.set_sockets(*sockets.descriptors)
            self.peers.announce_endpoint()
            self._replaced.add(before)
        elif mark != before.mark:
            before.set_mark(mark)
            # The kernel routes by mark, so the source addresses in use may be wrong now: this clears them.
            self._dataplane.set_sockets(*before.descriptors)
        self._port, self._mark = self._resources.sockets.port, mark

    # Observation.

    def counters(self) -> Counters:
        """Return the counters of the data plane."""
        return self._dataplane.counters()

    @property
    def usable(self) -> bool:
        """Whether packets can pass: the TUN device, if there should be one, exists and is up."""
        tun = self._resources.tun if self._resources is not None else None
        return self._up and (tun is None or tun.exists)

    @property
    def body(self) -> str:
        """The data plane in use: "pure" or "native"."""
        return self._dataplane.name

    def status(self) -> TunnelStatus:
        """Return a snapshot of everything."""
        tun = self._resources.tun if self._resources is not None else None
        return TunnelStatus(
            device=tun.name if tun is not None and tun.exists else None,
            up=self._up,
            mtu=self._mtu,
            listen_port=self.listen_port,
            fwmark=self.fwmark,
            public_key=self._device.public_key,
            body=self._dataplane.name,
            offloads=self._dataplane.offloads(),
            counters=self._dataplane.counters(),
            handshake_drops=self._device.drops(),
            peers=tuple(self.peers.statuses()),
            prefixes=self.peers.prefixes(),
        )

    # Callbacks.

    def _on_timer(self, now: float) -> float | None:
        """Do everything that is due at this instant; return when the next is due."""
        unix_ns = time.time_ns()
        self._device.poll(now, unix_ns)
        self._device.tick(now, unix_ns)
        for event in self._device.drain_events():
            if not isinstance(event, InnerPacket):
                self._listeners.on_session_event(event)
            elif (name := self.peers.name_of(event.peer)) is not None:
                self._listeners.on_inner_packet(name, event.packet, event.outer_ce)
        return self._device.deadline()

    def _on_links_changed(self) -> None:
        """Look at the devices in use after some device of this host changed."""
        assert self._resources is not None
        peers_by_link: dict[int, list[PeerId]] = {}
        for peer, counters in self._dataplane.counters().peers.items():
            if counters.source is not None:
                peers_by_link.setdefault(counters.source.ifindex, []).append(peer)
        for index, peers in peers_by_link.items():
            if not self._resources.links.is_up(index):
                # Peers must not answer to the address of an uplink that is down, even while the host still has it.
                for peer in peers:
                    self._dataplane.clear_source(peer)
        if self._resources.tun is not None:
            self._check_device(self._resources.tun)

    def _check_device(self, tun: Tun) -> None:
        """Apply the TUN device's current MTU and state."""
        assert self._resources is not None
        if not tun.exists:
            self._resources.links.stop()
            self._dataplane.stop()
            self._up = False
            self._listeners.on_device_deleted()
            return
        try:
            mtu, up = tun.mtu, tun.is_up
        except HostError:  # deleted in this moment; the next notification comes
            return
        if mtu != self._mtu:
            self._mtu = mtu
            self._dataplane.set_mtu(mtu)
        if up != self._up:
            self._up = up
            if up:
                self._device.set_up(boottime())
            else:
                self._device.set_down()
            self._timer.wake()


def _apply_to_tun(tun: Tun | None, offloads: Offloads) -> Offloads:
    """Set the TUN device's offloads; return those that are allowed and granted."""
    if tun is None:
        return offloads
    tun.set_offloads(tso=offloads.tun_tso, uso=offloads.tun_uso)
    return dataclasses.replace(offloads, tun_tso=tun.tso, tun_uso=tun.uso)
