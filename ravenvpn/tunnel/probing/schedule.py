"""The probers of all peers behind one deadline; packets to send come back as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv6Address

from ravenvpn.dataplane.contract import PeerId
from ravenvpn.tunnel.deadlines import Deadlines
from ravenvpn.tunnel.probing.frame import ForwardingVerdict
from ravenvpn.tunnel.probing.prober import PathFacts, Prober


class ProbeSchedule:
    """`ours` is our tunnel address; `random(n)` gives n bytes. Unknown peers raise KeyError, but not in `receive`."""

    def __init__(self, ours: IPv6Address, random: Callable[[int], bytes]) -> None:
        self._ours = ours
        self._random = random
        self._probers: dict[PeerId, Prober] = {}
        self._deadlines = Deadlines()
        self._announced: tuple[int, int, tuple[ForwardingVerdict, ...]] = (0, 0, ())

    def watch(self, peer: PeerId, theirs: IPv6Address, interval: float | None, now: float) -> None:
        """Probe this peer every `interval` seconds (None: only answer it). A known peer gets the new interval."""
        prober = self._probers.get(peer)
        if prober is None:
            # The first requests are spread over an interval, or a thousand peers would be asked in one instant.
            spread = int.from_bytes(self._random(2), "big") / 65536 * (interval or 0.0)
            session = int.from_bytes(self._random(4), "big")
            prober = Prober(self._ours, theirs, session=session, start=now + spread, interval=interval)
            prober.announce(*self._announced)
            self._probers[peer] = prober
        else:
            prober.set_interval(interval, now)
        self._expect(peer)

    def forget(self, peer: PeerId) -> None:
        del self._probers[peer]
        self._deadlines.cancel(peer)

    def announce(self, role: int, epoch: int, verdicts: Sequence[ForwardingVerdict] = ()) -> None:
        """What we say about ourselves to every peer from now on."""
        self._announced = (role, epoch, tuple(verdicts))
        for prober in self._probers.values():
            prober.announce(*self._announced)

    def due(self) -> float | None:
        return self._deadlines.next_due()

    def tick(self, now: float) -> list[tuple[PeerId, bytes]]:
        """Inner packets to send now, each to its peer."""
        packets = []
        for peer in self._deadlines.pop_due(now):
            prober = self._probers[peer]
            prober.expire(now)
            if prober.asks(now):
                packets.append((peer, prober.request(now)))
            self._expect(peer)
        return packets

    def ask_size(self, peer: PeerId, size: int, now: float) -> bytes:
        """An MTU probe: an inner packet of `size` bytes, to be sent so that the outer one is not fragmented."""
        packet = self._probers[peer].request(now, size)
        self._expect(peer)
        return packet

    def receive(self, peer: PeerId, packet: bytes, now: float) -> bytes | None:
        """Take in an inner packet from this peer; the answer to send back to it, if one is due."""
        prober = self._probers.get(peer)
        if prober is None:
            return None
        reply = prober.receive(packet, now)
        self._expect(peer)
        return reply

    def facts(self, peer: PeerId) -> PathFacts:
        return self._probers[peer].facts

    def _expect(self, peer: PeerId) -> None:
        due = self._probers[peer].due()
        if due is not None:
            self._deadlines.schedule(peer, due)
