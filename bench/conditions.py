"""Conditions of a workload: offloads off, many peers. Each is set before a run and reset after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from bench.candidates import Candidate, Ravenvpn, Tunnel
from bench.machine_pair import MachinePair
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.errors import HostError


class Condition(Protocol):
    """Sets the condition on entering the context, resets it on leaving."""

    def __call__(self, machines: MachinePair, candidate: Candidate) -> AbstractContextManager[None]: ...


def unchanged(machines: MachinePair, candidate: Candidate) -> AbstractContextManager[None]:
    """Run the workload with the offloads and peers that the candidate has by itself."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class OffloadsOff:
    """Features of ethtool(8) switched off."""

    device: tuple[str, ...] = ()  # on the device of a tunnel
    wire: tuple[str, ...] = ()  # on the veth pair below

    @contextmanager
    def __call__(self, machines: MachinePair, candidate: Candidate) -> Iterator[None]:
        features = [("eth0", feature) for feature in self.wire]
        if isinstance(candidate, Tunnel):
            features += [(candidate.device, feature) for feature in self.device]

        def switch(state: str) -> None:
            for host in machines.both:
                for device, feature in features:
                    host.run(["ethtool", "-K", device, feature, state])

        switch("off")
        try:
            yield
        finally:
            switch("on")


@dataclass(frozen=True, slots=True)
class WithoutOffload:
    """ravenvpn restarted without one of its offloads (`raven-vpn tun --without`). HostError for other candidates."""

    offload: str

    @contextmanager
    def __call__(self, machines: MachinePair, candidate: Candidate) -> Iterator[None]:
        if not isinstance(candidate, Ravenvpn):
            raise HostError("this candidate has no such switch")
        with candidate.without(machines, self.offload):
            yield


@cache
def peer_key(number: int) -> PrivateKey:
    """Return the key of an additional peer, the same in every run: it need not be secret."""
    return PrivateKey.generate(random.Random(number).randbytes)


@dataclass(frozen=True, slots=True)
class ManyPeers:
    """Additional peers at both ends, with allowed IPs spread over them."""

    peers: int
    prefixes: int  # of all these peers together

    @contextmanager
    def __call__(self, machines: MachinePair, candidate: Candidate) -> Iterator[None]:
        if not isinstance(candidate, Tunnel):
            yield
            return
        keys = [str(peer_key(number).public) for number in range(self.peers)]
        # /28s of 10.128.0.0/9: there are 32,768, and no tunnel has an address in them.
        networks = [f"10.{128 + (n >> 12)}.{n >> 4 & 255}.{(n & 15) << 4}/28" for n in range(self.prefixes)]
        config = "".join(
            f"[Peer]\nPublicKey = {key}\nAllowedIPs = {', '.join(networks[index :: self.peers])}\n"
            for index, key in enumerate(keys)
        )
        for host in machines.both:
            host.write("/etc/wireguard/peers.conf", config)
            host.run(["wg", "addconf", candidate.device, "/etc/wireguard/peers.conf"])
        try:
            yield
        finally:
            removal = [word for key in keys for word in ("peer", key, "remove")]
            for host in machines.both:
                host.run(["wg", "set", candidate.device, *removal])
