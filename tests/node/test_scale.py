"""Hundreds of regions of ten nodes on a real kernel: the cost of a change, and of the time after a start.

The tests measure CPU time, since the machine may be busy. The agent's soak test measures the limit of 50 ms from plan
to kernel.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from mesh.test_mesh_scale import region, world_of
from node.box import Box

from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import Situation
from ravenvpn.node.apply import ApplyResult, Host
from ravenvpn.node.host_events import HostEvent
from ravenvpn.node.reconciler import Reconciler, WantedState

pytestmark = [pytest.mark.root, pytest.mark.needs("nft")]

FACTS = LocalFacts(addresses=frozenset({ip_address("172.16.0.1")}))
CHANGE_BAR = 0.005  # seconds of CPU, the median; measured 0.001, and 0.015 if it walks over all flows
AFTERWARDS_BAR = 0.2  # seconds of CPU; measured 0.05, and half a second if it reads all routes


def test_a_delta_is_cheap_and_a_start_causes_no_second_observation(
    box: Callable[[], Box], state_file: Path, held: ExitStack
) -> None:
    node = box()
    node.sh("ip link add eth0 type veth peer name eth1; ip addr add 172.16.0.1/24 dev eth0; ip link set eth0 up")
    held.enter_context(node.tun())

    async def main() -> tuple[float, list[float], int]:
        world, planner, events = world_of(400), Planner("region-00000-0"), list[HostEvent]()
        planner.update(Situation(world, facts=FACTS))
        wanted = WantedState(planner.host, planner.host_frame)
        with Host(state_file) as host:
            reconciler = Reconciler(host, events.append)
            reconciler.start()
            assert (await reconciler.reconcile(wanted)).failed == ()
            spent = time.process_time()
            await asyncio.sleep(2)  # notifications of the reconciler's own changes have been processed by then
            afterwards = time.process_time() - spent
            assert not reconciler.pending
            times = []
            for turn in range(40):
                world = world.with_gateway(region(7 + turn % 10, moved=1 + turn // 10 % 2))
                delta = planner.update(Situation(world, facts=FACTS))
                spent = time.process_time()
                assert (await reconciler.reconcile_delta(delta.host, wanted)).failed == ()
                times.append(time.process_time() - spent)
            assert await reconciler.run(lambda host: host.apply(planner.plan().host)) == ApplyResult()
            assert events == []
            await reconciler.stop()
            return afterwards, sorted(times), len(planner.plan().host.routes)

    gc.collect()
    gc.freeze()
    try:
        afterwards, times, routes = node.call(asyncio.run, main())
    finally:
        gc.unfreeze()

    assert routes > 15_000
    assert times[len(times) // 2] < CHANGE_BAR
    assert afterwards < AFTERWARDS_BAR
