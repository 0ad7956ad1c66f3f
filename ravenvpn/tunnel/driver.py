"""A tunnel that runs: TUN, outer sockets, data plane and device on one event loop.

What to do is decided below, in `device` and in the data plane; here descriptors are opened and closed, clocks are
read, and whoever has something to do gets called. Mutators may come before `start`, and each takes effect between
two packets.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address

from ravenvpn import dataplane
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.dataplane import boottime
from ravenvpn.dataplane.contract import Counters, Endpoint, InnerPacket, PeerId, Timing
from ravenvpn.errors import HostError
from ravenvpn.offloads import Offloads
from ravenvpn.prefixes import Prefix
from ravenvpn.tunnel.admission.queue import HandshakeDrop
from ravenvpn.tunnel.allowed_ips import AllowedIPs
from ravenvpn.tunnel.device import Device, PeerSettings, PeerStatus, SessionLost, SessionUp
from ravenvpn.tunnel.linux import udp
from ravenvpn.tunnel.linux.links import LinkWatch
from ravenvpn.tunnel.linux.tun import Tun
from ravenvpn.tunnel.loop_timer import LoopTimer
from ravenvpn.tunnel.peer import WIREGUARD_ONLY


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    """A snapshot. `device` is None for a tunnel without a TUN; `prefixes` are by peer name."""

    device: str | None
    up: bool
    mtu: int
    listen_port: int
    fwmark: int
    public_key: PublicKey | None
    body: str
    offloads: Offloads
    counters: Counters
    handshake_drops: Mapping[HandshakeDrop, int]
    peers: tuple[PeerStatus, ...]
    prefixes: Mapping[str, Sequence[Prefix]]


@dataclass(slots=True)
class Listeners:
    """Who wants to hear what; called on the loop."""

    on_report: Callable[[SessionUp | SessionLost], None] = lambda _: None
    # Peer, whole inner packet to our probe port, whether its outer packet was marked CE.
    on_inner: Callable[[str, bytes, bool], None] = lambda *_: None
    # Someone deleted the TUN device: this tunnel is of no use any more.
    on_gone: Callable[[], None] = lambda: None


class Tunnel:
    """One device of ours and all its peers, by name. Unknown names raise KeyError, bad arguments ValueError."""

    def __init__(
        self,
        tun: Tun | None,
        *,
        timing: Timing | None = None,
        suites: frozenset[Suite] = WIREGUARD_ONLY,
        offloads: Offloads | None = None,
        listeners: Listeners | None = None,
        random: Callable[[int], bytes] = os.urandom,
        body: str | None = None,
    ) -> None:
        """`tun` is ours to close; None makes a tunnel of sessions and probes only. `offloads` may forbid some;
        `body` forces a data plane (see `dataplane.create`)."""
        timing, offloads = timing or Timing(), offloads or Offloads()
        if tun is not None:
            tun.offload(tso=offloads.tun_tso, uso=offloads.tun_uso)
            offloads = dataclasses.replace(offloads, tun_tso=tun.tso, tun_uso=tun.uso)
        self.settings: dict[str, PeerSettings] = {}  # to be read; `set_peer` and `remove_peer` write
        self.allowed_ips = AllowedIPs()
        self.private_key: PrivateKey | None = None
        self.fwmark = 0
        self._listeners = listeners or Listeners()
        self._tun = tun
        self._dataplane = dataplane.create(
            tun=None if tun is None else tun.fd, offloads=offloads, timing=timing, body=body
        )
        self._device = Device(self._dataplane, random=random, timing=timing, suites=suites)
        self._ids: dict[str, PeerId] = {}
        self._names: dict[PeerId, str] = {}
        self._port = 0
        self._bind = functools.partial(udp.bind, gso=offloads.udp_gso, gro=offloads.udp_gro)
        self._sockets: udp.UdpSockets | None = None
        self._pulse = LoopTimer(self._beat)
        self._links = LinkWatch(self._links_changed)
        self._mtu = 0
        self._up = False

    # Life.

    def start(self) -> None:
        """Begin to run on the running loop. Raises HostError when the port can not be had."""
        loop = asyncio.get_running_loop()
        self._sockets = self._bind(self._port, mark=self.fwmark)
        self._dataplane.set_sockets(*self._sockets.descriptors)
        self._links.start(loop)
        if self._tun is None:
            self._up = True
            self._device.set_up(boottime())
        else:
            self._look_at_own(self._tun)
        self._dataplane.start(loop, self._pulse.wake)
        self._pulse.start(loop)

    def stop(self) -> None:
        """Stop and close everything, the TUN too, which deletes the device. Safe to call twice."""
        self._pulse.stop()
        self._links.stop()
        self._dataplane.stop()
        if self._sockets is not None:
            # Nobody may be left holding a number that soon means another file.
            self._dataplane.set_sockets(None, None)
            self._sockets.close()
            self._sockets = None
        if self._tun is not None:
            self._tun.close()
            self._tun = None

    # Who we are, and where.

    def set_private_key(self, key: PrivateKey | None) -> None:
        self.private_key = key
        self._device.set_private_key(key, boottime())
        self._pulse.wake()

    def set_next_private_key(self, key: PrivateKey | None) -> None:
        """Answer to this key as well (key rotation)."""
        self._device.set_next_private_key(key)

    def set_own_address(self, address: IPv6Address | None, probe_port: int) -> None:
        """Inner UDP to this address and port goes to `on_inner` instead of the TUN."""
        self._dataplane.set_own_address(address, probe_port)

    @property
    def listen_port(self) -> int:
        return self._port if self._sockets is None else self._sockets.port

    def listen(self, port: int | None = None, fwmark: int | None = None) -> None:
        """Move to another outer port (0: a random one) or mark; None leaves as it is.

        All or nothing: raises PortInUseError, or HostError, and then everything is as before.
        """
        mark = self.fwmark if fwmark is None else fwmark
        if self._sockets is not None:
            if port is not None and (port == 0 or port != self._sockets.port):
                before, self._sockets = self._sockets, self._bind(port, mark=mark)
                self._dataplane.set_sockets(*self._sockets.descriptors)
                before.close()
            elif mark != self.fwmark:
                self._sockets.set_mark(mark)
                # The kernel routes by mark, so the address we answered from may be wrong now: forget it.
                self._dataplane.set_sockets(*self._sockets.descriptors)
        self._port = self._port if port is None else port
        self.fwmark = mark

    # Who the others are.

    def set_peer(self, settings: PeerSettings) -> None:
        """Make or change the peer of that name. ValueError if another peer has one of its keys."""
        peer = self._device.set_peer(settings, boottime())
        self.settings[settings.name] = settings
        self._ids[settings.name] = peer
        self._names[peer] = settings.name
        self._pulse.wake()

    def set_endpoint(self, name: str, endpoint: Endpoint) -> None:
        """The peer is there now, wherever it was heard from before."""
        self._device.set_endpoint(name, endpoint)
        self._pulse.wake()

    def remove_peer(self, name: str) -> None:
        self._device.remove_peer(name)
        del self.settings[name], self._names[self._ids.pop(name)]
        self.allowed_ips.forget(name)
        self._pulse.wake()

    def initiate(self, name: str) -> None:
        """Shake hands as soon as the protocol's limits allow."""
        self._device.initiate(name, boottime())
        self._pulse.wake()

    def route(self, prefix: Prefix, names: Sequence[str]) -> None:
        """Egress: packets to `prefix` go to these peers, and no longer to whom they went; empty removes."""
        self._dataplane.route(prefix, [self._ids[name] for name in names])
        self.allowed_ips.route(prefix, names)

    def accept(self, name: str, add: Iterable[Prefix] = (), remove: Iterable[Prefix] = ()) -> None:
        """Ingress: which inner sources may come from this peer."""
        add, remove = tuple(add), tuple(remove)
        self._dataplane.accept(self._ids[name], add, remove)
        self.allowed_ips.accept(name, add, remove)

    def id_of(self, name: str) -> PeerId:
        """The peer's id, as `on_inner`'s events and probers know it. It changes when a tunnel is opened anew."""
        return self._ids[name]

    def send_inner(self, name: str, packet: bytes, outer_df: bool = False) -> None:
        """Send a whole inner packet of our own making, past the routes."""
        self._dataplane.send_inner(self._ids[name], packet, outer_df)
        self._pulse.wake()

    # Looking.

    def peers(self) -> list[PeerStatus]:
        return self._device.peers(boottime())

    def counters(self) -> Counters:
        return self._dataplane.counters()

    @property
    def usable(self) -> bool:
        """Whether packets can pass: the TUN, if one is wanted, is there and up."""
        return self._up and (self._tun is None or self._tun.exists)

    @property
    def body(self) -> str:
        """Of the data plane: "pure" or "native"."""
        return self._dataplane.name

    def status(self) -> TunnelStatus:
        return TunnelStatus(
            device=self._tun.name if self._tun is not None and self._tun.exists else None,
            up=self._up,
            mtu=self._mtu,
            listen_port=self.listen_port,
            fwmark=self.fwmark,
            public_key=self._device.public_key,
            body=self._dataplane.name,
            offloads=self._dataplane.offloads(),
            counters=self._dataplane.counters(),
            handshake_drops=self._device.drops(),
            peers=tuple(self.peers()),
            prefixes={name: self.allowed_ips.of(name) for name in self._ids},
        )

    # Inside.

    def _beat(self, now: float) -> float | None:
        """Everything there is to do at this instant; returns when there will be more."""
        unix_ns = time.time_ns()
        self._device.poll(now, unix_ns)
        self._device.tick(now, unix_ns)
        for report in self._device.drain_events():
            if not isinstance(report, InnerPacket):
                self._listeners.on_report(report)
            elif (name := self._names.get(report.peer)) is not None:
                self._listeners.on_inner(name, report.packet, report.outer_ce)
        return self._device.deadline()

    def _links_changed(self) -> None:
        """Some device of this host changed: look at those that matter to us."""
        sources: dict[int, list[PeerId]] = {}
        for peer, counters in self._dataplane.counters().peers.items():
            if counters.source is not None:
                sources.setdefault(counters.source.ifindex, []).append(peer)
        for index, peers in sources.items():
            if not self._links.is_up(index):
                # An address of an uplink that went is no place to be answered at, even while the host still has it.
                for peer in peers:
                    self._dataplane.clear_source(peer)
        if self._tun is not None:
            self._look_at_own(self._tun)

    def _look_at_own(self, tun: Tun) -> None:
        """Take over what is true of our own device now."""
        if not tun.exists:
            self._links.stop()
            self._dataplane.stop()
            self._up = False
            self._listeners.on_gone()
            return
        try:
            mtu, up = tun.mtu, tun.is_up
        except HostError:  # deleted in this moment; the next message says so
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
            self._pulse.wake()
