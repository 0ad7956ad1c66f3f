"""Workloads for a second on the plain veth pair, which needs no tunnel."""

from __future__ import annotations

import os

import pytest

from bench import cpu
from bench.candidates import PlainVeth, Tunnel
from bench.machine_pair import MachinePair
from bench.workloads import PingRtt, TcpFlows, UdpRate
from ravenvpn.errors import HostError


def test_processor_time_includes_children_that_have_ended():
    before = cpu.now([os.getpid()])
    child = os.fork()
    if not child:
        while os.times().user + os.times().system < 0.2:
            pass
        os._exit(0)
    os.waitpid(child, 0)
    used = cpu.now([os.getpid()]) - before
    assert 0.15 < used.processes < 0.6
    assert used.machine >= 0.15
    assert used.elapsed >= 0.15


@pytest.mark.root
@pytest.mark.needs("iperf3", "ping", "wg")
def test_workloads_return_what_was_delivered():
    with MachinePair() as machines:
        wire = PlainVeth()
        wire.start(machines)
        tcp = TcpFlows("tcp", "", both_ways=True).run(machines, wire, 1)
        assert tcp["bytes"] > 10e6
        assert tcp["Gbit/s"] == pytest.approx(tcp["bytes"] * 8 / 1e9, rel=0.3)

        udp = UdpRate("udp", "", size=64, offered=1000).run(machines, wire, 1)
        assert 0.7 < udp["kpps"] < 1.1
        assert udp["packets"] == pytest.approx(udp["kpps"] * 1000, rel=0.1)

        ping = PingRtt("ping", "").run(machines, wire, 0.2)
        assert 0 < ping["p50 µs"] <= ping["p99 µs"] <= ping["p99.9 µs"]
        assert ping["lost %"] == 0

        wire.far = "192.0.2.77"
        with pytest.raises(HostError, match="no ping was answered"):
            PingRtt("ping", "").run(machines, wire, 0.01)
        with pytest.raises(HostError, match="the iperf3 server ended"):
            TcpFlows("tcp", "").run(machines, wire, 1)


@pytest.mark.root
@pytest.mark.needs("wg")
def test_a_tunnel_that_does_not_start_raises_its_last_output():
    with MachinePair() as machines:
        broken = Tunnel("broken", 9, ["sh", "-c", "echo no such body >&2; exit 1"])
        with pytest.raises(HostError, match="broken does not start: no such body"):
            broken.start(machines)
