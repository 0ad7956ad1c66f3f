"""CPU time of planning in worlds of many regions.

The targets are 2 s for the first plan and 20 ms for one change. The limits here are wider, for a busy machine. The
precise assertion is that a change takes no longer in a larger world.
"""

from __future__ import annotations

import ipaddress
import statistics
import time
from dataclasses import replace

import pytest

from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, NodeInfo, PeerObject, World
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import Situation

NODES = 10


def region(number: int, *, moved: int = 0) -> Gateway:
    name = f"region-{number:05}"
    base = ipaddress.IPv4Address("10.0.0.0") + number * NODES * 16
    infos = tuple(
        NodeInfo(
            f"{name}-{i}",
            ipaddress.IPv4Address(f"172.16.{number % 256}.{i + 1}"),
            (
                ipaddress.IPv4Network((int(base) + (i + moved) * 16, 28)),
                ipaddress.IPv6Network((0xFD00 << 112 | number << 80 | (i + moved) << 64, 64)),
            ),
        )
        for i in range(NODES)
    )
    nat = number % 2 == 1
    public = ipaddress.IPv4Address("192.0.2.0") if nat else ipaddress.IPv4Address("198.18.0.0") + number
    endpoint = GatewayEndpoint(infos[0].node, under_nat=nat, public_ip="" if nat else str(public))
    return Gateway(name, (endpoint,), 1, status=GatewayStatus(infos, (endpoint,)))


def world_of(count: int) -> World:
    gateways = [region(i) for i in range(count)]
    peers = [
        PeerObject(info.node, i.to_bytes(16, "big") + bytes(15) + b"\1")
        for i, info in enumerate(info for g in gateways for info in g.status.nodes[:1])
    ]
    return World.of(gateways, peers)


@pytest.mark.parametrize(
    ("me", "own"),
    # Additional routes: the mesh prefix twice, and the prefixes of each other node in its region.
    [("region-00000-0", 2 + 2 * (NODES - 1)), ("region-00001-0", 2 + 2 * (NODES - 1)), ("region-00001-1", 0)],
    ids=["public", "behind NAT", "plain"],
)
def test_a_thousand_regions_are_planned_in_seconds(me: str, own: int) -> None:
    world = world_of(1000)
    began = time.process_time()

    planner = Planner(me)
    planner.update(Situation(world))
    made = planner.plan()

    assert time.process_time() - began < 6.0
    assert len(made.host.routes) == 2 * (2 * NODES * 999) + own


@pytest.mark.parametrize(
    "me", ["region-00000-0", "region-00001-0", "region-00001-1"], ids=["public", "behind NAT", "plain"]
)
def test_one_changed_region_takes_the_same_time_in_any_world(me: str) -> None:
    """Prefixes of one region change. The time of the update does not depend on the number of other regions."""
    median = {count: one_change(world_of(count), me) for count in (100, 1000)}

    assert median[1000] < 0.05
    assert median[1000] < 3 * median[100] + 0.005


def test_replacing_a_dead_hub_takes_time_for_its_pairs_alone() -> None:
    """Sixteen hubs serve five hundred regions behind NAT; one of them dies and its pairs move in one update."""
    world = world_of(1000)
    planner = Planner("region-00001-0")
    planner.update(Situation(world))
    relays = dict(planner.plan().relays)
    hub = relays["region-00003"]
    carried = sum(chosen == hub for chosen in relays.values())

    began = time.process_time()
    delta = planner.update(Situation(world, Liveness({f"{hub}-0": LivenessVerdict.DEAD})))

    assert time.process_time() - began < 1.0
    assert len(relays) == 499
    assert 10 < carried < 60
    assert len(delta.tunnel.routes) == carried * (2 * NODES + 1)
    assert not delta.host


def one_change(world: World, me: str) -> float:
    planner = Planner(me)
    planner.update(Situation(world))
    spent = []
    for turn in range(40):
        number = 7 + turn % 10
        changed = region(number, moved=turn % 2)
        if changed == world.gateways[changed.name]:
            changed = replace(changed, generation=turn)
        world = world.with_gateway(changed)
        began = time.process_time()
        planner.update(Situation(world))
        spent.append(time.process_time() - began)
    return statistics.median(spent)
