"""Plans of the planner applied to a real kernel by deltas, compared with an observation after each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mesh.mesh_worlds import edits, worlds
from node.box import Box, open_tun

from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import World
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import Situation
from ravenvpn.node.apply import ApplyResult, Host

pytestmark = [pytest.mark.root, pytest.mark.needs("nft", "bridge")]

# The address of the observed node, so that it may be a VXLAN member of its region. The kernel refuses a plan with
# another source.
OWN = ip_address("172.16.0.1")
FACTS = LocalFacts(addresses=frozenset({OWN}))


@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_deltas_equal_a_whole_apply(data: st.DataObject, box: Callable[[], Box], state_file: Path) -> None:
    """Random worlds and edits, planned for a node that may be gateway, standby, plain or neither."""
    world: World = data.draw(worlds(least=2))
    course = [world]
    for _ in range(3):
        course.append(data.draw(edits(course[-1])))
    node = box()
    node.sh(f"ip link add eth0 type veth peer name eth1; ip addr add {OWN}/24 dev eth0; ip link set eth0 up")

    def play() -> None:
        planner = Planner("a0")
        with Host(state_file) as host, ExitStack() as devices:
            for turn, world in enumerate(course):
                before = planner.plan().host
                delta = planner.update(Situation(world, facts=FACTS))
                wanted = planner.plan().host
                if wanted.tun is not None and before.tun is None:
                    devices.enter_context(open_tun())
                result = host.apply_delta(delta.host, lambda: planner.plan().host)
                assert [str(failure) for failure in result.failed] == []
                assert host.apply(wanted) == ApplyResult(), f"after turn {turn}"
                assert host.apply(planner.host()) == ApplyResult()
            assert host.cleanup().failed == ()
            assert host.cleanup() == ApplyResult()

    node.call(play)
