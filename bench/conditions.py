"""What holds while a workload runs: nothing special, offloads off, many peers. Made before a run, undone after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from bench.candidates import Candidate, Ravenvpn, Tunnel
from bench.room import Room
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.errors import HostError


class Condition(Protocol):
    def __call__(self, room: Room, candidate: Candidate) -> AbstractContextManager[None]: ...


def USUAL(room: Room, candidate: Candidate) -> AbstractContextManager[None]:  # noqa: N802 - a constant to its users
    """As the kernel and the candidate come."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class OffloadsOff:
    """Features of ethtool(8), on a tunnel's device and on the wire below."""

    device: tuple[str, ...] = ()
    wire: tuple[str, ...] = ()

    @contextmanager
    def __call__(self, room: Room, candidate: Candidate) -> Iterator[None]:
        features = [("eth0", feature) for feature in self.wire]
        if isinstance(candidate, Tunnel):
            features += [(candidate.device, feature) for feature in self.device]

        def switch(state: str) -> None:
            for host in room.both:
                for device, feature in features:
                    host.run(["ethtool", "-K", device, feature, state])

        switch("off")
        try:
            yield
        finally:
            switch("on")


@dataclass(frozen=True, slots=True)
class Without:
    """ravenvpn started anew without one of its offloads, as `raven-vpn tun --without` takes it."""

    offload: str

    @contextmanager
    def __call__(self, room: Room, candidate: Candidate) -> Iterator[None]:
        if not isinstance(candidate, Ravenvpn):
            raise HostError("it has no such switch")
        with candidate.without(room, self.offload):
            yield


@cache
def crowd_key(number: int) -> PrivateKey:
    """Of the crowd's peers, each time the same: nothing depends on its being secret."""
    return PrivateKey.generate(random.Random(number).randbytes)


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many peers more at both ends, with so many allowed IPs among them."""

    peers: int
    prefixes: int

    @contextmanager
    def __call__(self, room: Room, candidate: Candidate) -> Iterator[None]:
        if not isinstance(candidate, Tunnel):
            yield
            return
        keys = [str(crowd_key(number).public) for number in range(self.peers)]
        # 10.128.0.0/9 in /28s: 32,768 of them, none where tunnels have their addresses.
        networks = [f"10.{128 + (n >> 12)}.{n >> 4 & 255}.{(n & 15) << 4}/28" for n in range(self.prefixes)]
        config = "".join(
            f"[Peer]\nPublicKey = {key}\nAllowedIPs = {', '.join(networks[index :: self.peers])}\n"
            for index, key in enumerate(keys)
        )
        for host in room.both:
            host.write("/etc/wireguard/crowd.conf", config)
            host.run(["wg", "addconf", candidate.device, "/etc/wireguard/crowd.conf"])
        try:
            yield
        finally:
            removal = [word for key in keys for word in ("peer", key, "remove")]
            for host in room.both:
                host.run(["wg", "set", candidate.device, *removal])
