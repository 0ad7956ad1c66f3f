"""Probe schedule: the probers of all peers behind one deadline. Packets to send are returned, not sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv6Address

from ravenvpn.dataplane.contract import PeerId
from ravenvpn.tunnel.deadlines import Deadlines
from ravenvpn.tunnel.probing.frame import ForwardingVerdict
from ravenvpn.tunnel.probing.prober import PathFacts, Prober


class ProbeSchedule:
    """Probers by peer. Unknown peers raise KeyError, except in `receive`. Instants are seconds on one clock."""

    def __init__(self, own_address: IPv6Address, random: Callable[[int], bytes]) -> None:
        """`own_address` is our tunnel address; `random(n)` returns n random bytes."""
        self._own_address = own_address
        self._random = random
        self._probers: dict[PeerId, Prober] = {}
        self._deadlines = Deadlines()
        self._announced: tuple[int, int, tuple[ForwardingVerdict, ...]] = (0, 0, ())

    def probe(self, peer: PeerId, address: IPv6Address, interval: float | None, now: float) -> None:
        """Probe this peer at its tunnel address every `interval` seconds (None: only answer its probes).

        A peer that is probed already gets the new interval; its address stays.
        """
        prober = self._probers.get(peer)
        if prober is None:
            # Spread the first requests over an interval; otherwise a thousand peers would be probed at one instant.
            spread = int.from_bytes(self._random(2), "big") / 65536 * (interval or 0.0)
            session = int.from_bytes(self._random(4), "big")
            prober = Prober(self._own_address, address, session=session, start=now + spread, interval=interval)
            prober.announce(*self._announced)
            self._probers[peer] = prober
        else:
            prober.set_interval(interval, now)
        self._reschedule(peer)

    def remove(self, peer: PeerId) -> None:
        """Stop probing and answering the peer, and delete its measurements."""
        del self._probers[peer]
        self._deadlines.cancel(peer)

    def announce(self, role: int, epoch: int, verdicts: Sequence[ForwardingVerdict] = ()) -> None:
        """Set what our requests and replies to all peers carry about this node; see `Prober.announce`."""
        self._announced = (role, epoch, tuple(verdicts))
        for prober in self._probers.values():
            prober.announce(*self._announced)

    def next_due(self) -> float | None:
        """Return when to call `pop_requests` at the latest, None if nothing is due."""
        return self._deadlines.next_due()

    def pop_requests(self, now: float) -> list[tuple[PeerId, bytes]]:
        """Count requests without a reply as lost, and return the inner packets to send now, each with its peer."""
        packets = []
        for peer in self._deadlines.pop_due(now):
            prober = self._probers[peer]
            prober.expire(now)
            if prober.request_is_due(now):
                packets.append((peer, prober.request(now)))
            self._reschedule(peer)
        return packets

    def request_size(self, peer: PeerId, size: int, now: float) -> bytes:
        """Return an MTU probe: an inner packet of `size` bytes, to be sent with DF set outside.

        For path-MTU search; no caller yet.
        """
        packet = self._probers[peer].request(now, size)
        self._reschedule(peer)
        return packet

    def receive(self, peer: PeerId, packet: bytes, now: float) -> bytes | None:
        """Process an inner packet to the probe port from this peer; return the reply to send to it, if there is
        one."""
        prober = self._probers.get(peer)
        if prober is None:
            return None
        reply = prober.receive(packet, now)
        self._reschedule(peer)
        return reply

    def facts(self, peer: PeerId) -> PathFacts:
        """Return the measurements of the path to this peer."""
        return self._probers[peer].facts

    def _reschedule(self, peer: PeerId) -> None:
        due = self._probers[peer].next_deadline()
        if due is not None:
            self._deadlines.schedule(peer, due)
