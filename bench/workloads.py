"""Workloads: one small class for each, which sends traffic from near to far and returns its figures.

Most need only the addresses of a candidate's ends. The caller (`bench.__main__`) measures processor time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.candidates import Candidate, Tunnel
from bench.conditions import Condition, ManyPeers, OffloadsOff, WithoutOffload, peer_key, unchanged
from bench.machine_pair import FAR, MachinePair
from ravenvpn.crypto import tai64n
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieStamper
from ravenvpn.crypto.handshake import initiate
from ravenvpn.crypto.keys import PrivateKey, PublicKey
from ravenvpn.errors import HostError
from ravenvpn.lab.host import LabHost
from ravenvpn.overhead import ETHERNET_MTU
from ravenvpn.tunnel.handshake.messages import COOKIE_REPLY_BYTES, RESPONSE_BYTES, Initiation

# Figures of a run by name. "bytes", "packets" and "handshakes" are the amounts delivered, for figures per GB, per
# million packets and per thousand handshakes.
Figures = dict[str, float]


class Ends(Protocol):
    """The hosts on which clients (near) and servers (far) run."""

    @property
    def near(self) -> LabHost: ...

    @property
    def far(self) -> LabHost: ...


class Measured(Protocol):
    """A workload as reports see it."""

    @property
    def name(self) -> str:
        """Name in JSON and on the command line."""

    @property
    def title(self) -> str:
        """One line for the table."""

    @property
    def headline(self) -> str:
        """The figure that reports show first and form ratios of."""

    @property
    def underlay_mtu(self) -> int:
        """MTU of the veth pair between the machines."""


class Workload(Measured, Protocol):
    """A workload that runs on a pair of machines."""

    @property
    def condition(self) -> Condition:
        """The condition that is set during the run."""

    def run(self, machines: MachinePair, candidate: Candidate, seconds: float) -> Figures:
        """Send traffic for about `seconds` and return its figures. HostError if it cannot be measured."""


@dataclass(frozen=True, slots=True)
class TcpFlows:
    """iperf3 with TCP flows, in one direction or in both at the same time."""

    name: str
    title: str
    flows: int = 1
    both_ways: bool = False
    underlay_mtu: int = ETHERNET_MTU
    condition: Condition = unchanged
    headline: str = field(default="Gbit/s", init=False)

    def run(self, machines: MachinePair, candidate: Candidate, seconds: float) -> Figures:
        options = ["-P", str(self.flows), *(["--bidir"] if self.both_ways else [])]
        end = iperf(machines, candidate.far, seconds, options)
        moved = end["sum_received"]["bytes"] + (end["sum_received_bidir_reverse"]["bytes"] if self.both_ways else 0)
        return {"Gbit/s": moved * 8 / end["sum_received"]["seconds"] / 1e9, "bytes": moved}


@dataclass(frozen=True, slots=True)
class UdpRate:
    """UDP packets of one size at a fixed rate; with `offered` 0 as fast as the sender can."""

    name: str
    title: str
    size: int  # bytes of UDP payload
    offered: int  # packets per second
    underlay_mtu: int = ETHERNET_MTU
    condition: Condition = unchanged
    headline: str = field(default="kpps", init=False)

    def run(self, machines: MachinePair, candidate: Candidate, seconds: float) -> Figures:
        rate = self.offered * self.size * 8
        end = iperf(machines, candidate.far, seconds, ["-u", "-l", str(self.size), "-b", str(rate)])["sum"]
        delivered = end["packets"] - end["lost_packets"]
        return {
            "kpps": delivered / end["seconds"] / 1e3,
            "lost %": 100 * end["lost_packets"] / max(1, end["packets"]),
            "packets": delivered,
        }


@dataclass(frozen=True, slots=True)
class PingRtt:
    """Round-trip times of small pings, between idle machines or beside one bulk TCP flow."""

    name: str
    title: str
    under_bulk: bool = False
    underlay_mtu: int = ETHERNET_MTU
    condition: Condition = unchanged
    headline: str = field(default="p50 µs", init=False)

    INTERVAL = 0.002  # seconds; the shortest that ping allows root without flooding

    def run(self, machines: MachinePair, candidate: Candidate, seconds: float) -> Figures:
        if not self.under_bulk:
            return ping(machines, candidate.far, seconds, self.INTERVAL)
        with bulk(machines, candidate.far, seconds):
            return ping(machines, candidate.far, seconds, self.INTERVAL)


def ping(machines: Ends, far: str, seconds: float, interval: float) -> Figures:
    """Return quantiles of the round-trip times and the share that was lost. HostError if all pings were lost."""
    count = int(seconds / interval)
    done = machines.near.run(
        ["ping", "-n", "-i", str(interval), "-c", str(count), "-W", "1", far],
        check=False,
        timeout=seconds * 40 + 20,  # a loaded machine takes longer
    )
    times = sorted(float(ms) * 1e3 for ms in re.findall(r"time=([0-9.]+) ms", done.stdout))
    if not times:
        raise HostError(f"no ping was answered: {done.stdout.strip()[-200:]}")

    def quantile(share: float) -> float:
        return times[min(len(times) - 1, int(share * len(times)))]

    return {
        "p50 µs": quantile(0.5),
        "p99 µs": quantile(0.99),
        "p99.9 µs": quantile(0.999),
        "lost %": 100 * (count - len(times)) / count,
    }


@contextmanager
def bulk(machines: Ends, far: str, seconds: float) -> Iterator[None]:
    """Run one TCP flow while the block runs, about `seconds`. It is past slow start when the block begins."""
    with iperf_server(machines, far):
        client = machines.near.popen(
            ["iperf3", "-c", far, "-t", str(int(seconds * 10) + 5)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(0.5)
            yield
        finally:
            client.kill()
            client.wait()


@contextmanager
def iperf_server(machines: Ends, address: str) -> Iterator[None]:
    """Run an iperf3 server for one test; it listens when the block begins. HostError if it does not start."""
    server = machines.far.popen(
        ["iperf3", "-s", "-1", "-B", address, "--forceflush"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert server.stdout is not None  # a pipe
    try:
        output = b""
        while b"listening" not in output:
            line = server.stdout.readline()
            if not line:
                raise HostError(f"the iperf3 server ended: {output.decode(errors='replace').strip()}")
            output += line
        yield
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def iperf(machines: Ends, far: str, seconds: float, options: list[str]) -> dict[str, Any]:
    """Run one iperf3 test and return `end` of its JSON, the sums of all flows. HostError if it fails."""
    with iperf_server(machines, far):
        client = machines.near.run(
            ["iperf3", "-J", "-c", far, "-t", str(int(seconds)), *options], check=False, timeout=seconds + 30
        )
    try:
        outcome = json.loads(client.stdout)
    except ValueError:
        raise HostError(f"iperf3: {client.stderr.strip() or client.stdout[-200:]}") from None
    if "error" in outcome:
        raise HostError(f"iperf3: {outcome['error']}")
    end: dict[str, Any] = outcome["end"]
    return end


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Handshakes per second that the far end answers, each from another peer.

    32 initiations are in flight: few enough that the responder is not under load and sends no cookie replies.
    """

    name: str
    title: str
    callers: int
    underlay_mtu: int = ETHERNET_MTU
    headline: str = field(default="handshakes/s", init=False)

    @property
    def condition(self) -> Condition:
        return ManyPeers(self.callers, self.callers)

    def run(self, machines: MachinePair, candidate: Candidate, seconds: float) -> Figures:
        if not isinstance(candidate, Tunnel):
            raise HostError("this candidate has no handshake")
        theirs = PublicKey.from_base64(
            machines.far.run(["wg", "show", candidate.device, "public-key"]).stdout.strip()
        )
        waiting = [self._initiation(number, theirs) for number in range(self.callers)]
        answered = refused = 0
        with machines.near.socket() as caller:
            caller.connect((FAR, candidate.port))
            caller.settimeout(1)
            began = last = time.monotonic()
            for message in waiting[:IN_FLIGHT]:
                caller.send(message)
            for following in range(IN_FLIGHT, self.callers + IN_FLIGHT):
                try:
                    answer = caller.recv(2048)
                except TimeoutError:
                    break  # a lost message: later ones would measure the timeout
                last = time.monotonic()
                answered += len(answer) == RESPONSE_BYTES
                refused += len(answer) == COOKIE_REPLY_BYTES
                if following < self.callers:
                    caller.send(waiting[following])
        if not answered:
            raise HostError("no handshake was answered")
        return {
            "handshakes/s": answered / (last - began),
            "refused %": 100 * refused / self.callers,
            "handshakes": answered,
        }

    @staticmethod
    def _initiation(number: int, theirs: PublicKey) -> bytes:
        ours = peer_key(number)
        timestamp = tai64n.stamp(time.time_ns())
        body, pending = initiate(ours, theirs, Suite.CHACHA20POLY1305, timestamp, PrivateKey.generate(os.urandom))
        pending.wipe()
        return CookieStamper(theirs).stamp(Initiation(number, Suite.CHACHA20POLY1305, body).pack(), 0.0)


IN_FLIGHT = 32  # initiations without a response

FIRST: tuple[Workload, ...] = (TcpFlows("tcp1", "one TCP flow"),)
MORE: tuple[Workload, ...] = (
    TcpFlows("tcp16", "16 TCP flows", flows=16),
    TcpFlows("tcp1-both", "one TCP flow each way at once", both_ways=True),
    TcpFlows("tcp1-jumbo", "one TCP flow, underlay MTU 9000", underlay_mtu=9000),
    TcpFlows("tcp1-100-peers", "one TCP flow, 100 peers with 10,000 prefixes", condition=ManyPeers(100, 10_000)),
    TcpFlows("tcp1-1000-peers", "one TCP flow, 1,000 peers with 10,000 prefixes", condition=ManyPeers(1000, 10_000)),
    UdpRate("udp64-10k", "UDP, 64 B at 10 kpps", size=64, offered=10_000),
    UdpRate("udp64-20k", "UDP, 64 B at 20 kpps", size=64, offered=20_000),
    UdpRate("udp64-40k", "UDP, 64 B at 40 kpps", size=64, offered=40_000),
    UdpRate("udp64-80k", "UDP, 64 B at 80 kpps", size=64, offered=80_000),
    UdpRate("udp64-flood", "UDP, 64 B, as many as can be sent", size=64, offered=0),
    UdpRate("udp1372-10k", "UDP, 1372 B at 10 kpps", size=1372, offered=10_000),
    UdpRate("udp1372-40k", "UDP, 1372 B at 40 kpps", size=1372, offered=40_000),
    UdpRate("udp1372-80k", "UDP, 1372 B at 80 kpps", size=1372, offered=80_000),
    PingRtt("ping-idle", "ping, no other traffic"),
    PingRtt("ping-bulk", "ping beside one TCP flow", under_bulk=True),
    Handshakes("handshakes", "handshakes answered, each of another peer", callers=1000),
    TcpFlows(
        "tcp1-no-device-offload",
        "one TCP flow, no segmentation offload on the tunnel's device",
        condition=OffloadsOff(device=("tso", "gso")),
    ),
    TcpFlows(
        "tcp1-no-wire-offload",
        "one TCP flow, neither UDP segmentation nor GRO on the wire",
        condition=OffloadsOff(wire=("tx-udp-segmentation", "gro")),
    ),
    *(
        TcpFlows(
            f"tcp1-without-{offload}", f"one TCP flow, ravenvpn without {offload}", condition=WithoutOffload(offload)
        )
        for offload in ("tun_tso", "tun_gro", "tun_batch", "udp_gso", "udp_gro")
    ),
    *(
        UdpRate(
            f"udp1372-without-{offload}",
            f"UDP, 1372 B at 80 kpps, ravenvpn without {offload}",
            size=1372,
            offered=80_000,
            condition=WithoutOffload(offload),
        )
        for offload in ("tun_uso", "tun_gro_udp")
    ),
)
EVERY = (*FIRST, *MORE)
