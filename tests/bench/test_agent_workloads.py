"""Parts of the agent workloads: the large world, the flood, and tunnels without an offload."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from bench.candidates import PlainVeth, ravenvpn
from bench.conditions import WithoutOffload
from bench.flood import DIFFERENT, packets
from bench.large_world import large_world
from bench.machine_pair import MachinePair
from bench.workloads import TcpFlows
from ravenvpn import dataplane
from ravenvpn.crypto.cookie import CookieChecker
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.errors import HostError
from ravenvpn.k8s.files import FileSource
from ravenvpn.tunnel.handshake.messages import Initiation, parse


def test_a_large_world_has_the_given_number_of_gateways_and_no_problems(tmp_path: Path):
    (tmp_path / "storm.json").write_text(large_world(1000))
    snapshot = FileSource(tmp_path).load()
    assert len(snapshot.world.gateways) == 1000
    assert snapshot.problems == ()


def test_a_flood_has_initiations_with_a_valid_mac1_from_spoofed_sources():
    key = PrivateKey.generate(os.urandom).public
    checker = CookieChecker(key, os.urandom)
    flood = packets("192.0.2.9", 4500, key)
    assert len(flood) == DIFFERENT
    for packet in flood[:50]:
        assert packet[16:20] == ip_address("192.0.2.9").packed
        assert packet[22:24] == (4500).to_bytes(2, "big")
        assert ip_address(packet[12:16]) in ip_network("198.18.0.0/15")
        message = packet[28:]
        assert isinstance(parse(message), Initiation)
        assert checker.mac1_is_valid(message)
    assert len({packet[12:16] for packet in flood}) > DIFFERENT * 0.9


@pytest.mark.root
@pytest.mark.needs("wg", "iperf3", "ping")
@pytest.mark.skipif(bool(dataplane.native_absence()), reason="THE NATIVE BODY IS NOT BUILT")
def test_a_tunnel_is_restarted_without_an_offload_and_then_with_it():
    with MachinePair() as machines:
        tunnel = ravenvpn("native", "chacha20poly1305", 9)
        tunnel.start(machines)
        before = tunnel.pids()
        with WithoutOffload("udp_gso")(machines, tunnel):
            for pid in tunnel.pids():
                assert b"--without\0udp_gso\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert TcpFlows("tcp1", "").run(machines, tunnel, 1)["bytes"] > 1e6
        assert set(tunnel.pids()).isdisjoint(before)
        assert b"--without" not in Path(f"/proc/{tunnel.pids()[0]}/cmdline").read_bytes()
        with pytest.raises(HostError, match="no such switch"), WithoutOffload("udp_gso")(machines, PlainVeth()):
            pass
