"""The tunnel follows the plan. The node is a plain one, which needs neither a device nor root."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import replace

import pytest

from ravenvpn.agent.tunnel_owner import TunnelOwner
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.mesh.model import Gateway, GatewayEndpoint, GatewayStatus, NodeInfo, PeerObject, World
from ravenvpn.mesh.plan import Planner
from ravenvpn.mesh.situation import IdentityKeys, Intent, Situation
from ravenvpn.tunnel.driver import Listeners


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def world(mesh: str, gateway: str = "edge-1") -> World:
    infos = tuple(
        NodeInfo(name, ipaddress.ip_address(f"127.0.0.{i}"), (ipaddress.ip_network(f"10.244.{i}.0/24"),))
        for i, name in enumerate((gateway, "edge-9"), 1)
    )
    endpoints = (GatewayEndpoint(gateway, under_nat=True),)
    factory = Gateway("factory", endpoints, 1, status=GatewayStatus(infos, endpoints))
    key = PrivateKey.generate(os.urandom).public.raw
    return World.of(
        [factory], [PeerObject(gateway, key, node_addresses=(ipaddress.ip_address("127.0.0.1"),))], mesh=mesh
    )


@pytest.fixture
def owner() -> TunnelOwner:
    made = TunnelOwner(last_seen={}, on_stale=lambda: None, listeners=Listeners())
    made.configure(Intent(), IdentityKeys(PrivateKey.generate(os.urandom)))
    return made


async def test_a_moving_tunnel_receives_on_both_ports(owner: TunnelOwner) -> None:
    """The plan needs rules for the former port until its sockets are closed."""
    planner, world_now, ports = Planner("edge-9"), world("mesh"), (free_port(), free_port())
    try:
        situation = Situation(world_now, intent=Intent(listen_port=ports[0]))
        delta = planner.update(situation).tunnel
        assert not owner.moves_port(delta), "there is no tunnel yet"
        await owner.apply_additions(planner.plan, delta)
        assert owner.ports() == {ports[0]}
        delta = planner.update(replace(situation, intent=Intent(listen_port=ports[1]))).tunnel
        assert owner.moves_port(delta)
        await owner.apply_additions(planner.plan, delta)
        assert owner.ports() == set(ports)
        assert not owner.moves_port(delta)
    finally:
        await owner.close()
    assert owner.ports() == set()


async def test_another_mesh_name_opens_another_tunnel(owner: TunnelOwner) -> None:
    """Every tunnel address depends on the mesh name, so measurements of the former tunnel are invalid."""
    planner, intent = Planner("edge-9"), Intent(listen_port=free_port())
    before = world("before")
    try:
        opened = await owner.apply_additions(planner.plan, planner.update(Situation(before, intent=intent)).tunnel)
        first, address = owner.tunnel, planner.tunnel_settings().own_address
        assert opened
        other = before.with_peer(replace(before.peers["edge-1"], listen_port=4501))
        delta = planner.update(Situation(other, intent=intent))
        assert not await owner.apply_additions(planner.plan, delta.tunnel)
        assert owner.tunnel is first, "another peer is no other tunnel"

        delta = planner.update(Situation(world("after", gateway="edge-2"), intent=intent))
        assert await owner.apply_additions(planner.plan, delta.tunnel)
        owner.apply_removals(delta.tunnel)
        assert owner.tunnel is not first
        assert planner.tunnel_settings().own_address != address
        assert owner.peer_plans().keys() == {"edge-2"}
    finally:
        await owner.close()
