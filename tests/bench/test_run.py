"""The bench itself, for a second: against the plain wire, which needs no tunnel."""

from __future__ import annotations

import os

import pytest

from bench import cpu
from bench.candidates import PlainVeth, Tunnel
from bench.room import Room
from bench.workloads import PingRtt, TcpFlows, UdpRate
from ravenvpn.errors import HostError


def test_time_of_a_process_is_counted_with_its_ended_children():
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
def test_workloads_say_what_arrived():
    with Room() as room:
        wire = PlainVeth()
        wire.start(room)
        tcp = TcpFlows("tcp", "", both_ways=True).run(room, wire, 1)
        assert tcp["bytes"] > 10e6
        assert tcp["Gbit/s"] == pytest.approx(tcp["bytes"] * 8 / 1e9, rel=0.3)

        udp = UdpRate("udp", "", size=64, offered=1000).run(room, wire, 1)
        assert 0.7 < udp["kpps"] < 1.1
        assert udp["packets"] == pytest.approx(udp["kpps"] * 1000, rel=0.1)

        ping = PingRtt("ping", "").run(room, wire, 0.2)
        assert 0 < ping["p50 µs"] <= ping["p99 µs"] <= ping["p99.9 µs"]
        assert ping["lost %"] == 0

        wire.far = "192.0.2.77"
        with pytest.raises(HostError, match="no ping was answered"):
            PingRtt("ping", "").run(room, wire, 0.01)
        with pytest.raises(HostError, match="iperf3 does not serve"):
            TcpFlows("tcp", "").run(room, wire, 1)


@pytest.mark.root
@pytest.mark.needs("wg")
def test_a_tunnel_that_does_not_start_says_why():
    with Room() as room:
        broken = Tunnel("broken", 9, ["sh", "-c", "echo no such body >&2; exit 1"])
        with pytest.raises(HostError, match="broken does not start: no such body"):
            broken.start(room)
