"""The value that an agent plans from: its repr contains no secrets, and an update touches only fields that differ."""

from __future__ import annotations

from dataclasses import replace

from mesh_worlds import gateway, node, own_prefixes, peer

from ravenvpn.crypto.keys import PresharedKey, PrivateKey
from ravenvpn.mesh.model import World
from ravenvpn.mesh.plan import Planner, plan
from ravenvpn.mesh.situation import IdentityKeys, Intent, Observations, Situation

KEY, OTHER = PrivateKey(bytes(31) + b"\1"), PrivateKey(bytes(31) + b"\2")


def world() -> World:
    gateways, peers = [], []
    for region in range(3):
        nodes = tuple(node(region, i) for i in range(2))
        prefixes = {name: own_prefixes(region, i) for i, name in enumerate(nodes)}
        gateways.append(gateway(region, nodes, prefixes, nodes[:1], nat=region == 1, able=1))
        peers += [peer(name, 3 * region + i) for i, name in enumerate(nodes)]
    # Endpoints without a port, so that the operator's setting applies.
    bare = [replace(g, endpoints=tuple(replace(e, port=0) for e in g.endpoints)) for g in gateways]
    status = [replace(g.status, active=tuple(replace(e, port=0) for e in g.status.active)) for g in gateways]
    return World.of([replace(g, status=s) for g, s in zip(bare, status, strict=True)], peers)


def test_the_repr_of_identity_keys_shows_public_keys_only() -> None:
    keys = IdentityKeys(KEY, next=OTHER)

    for text in (
        repr(keys),
        str(keys),
        repr(Situation(keys=keys, intent=Intent(preshared_key=PresharedKey(b"x" * 32)))),
    ):
        assert str(KEY.public) in text
        assert str(OTHER.public) in text
        assert "previous=None" in text
        for secret in (KEY, OTHER, PresharedKey(b"x" * 32)):
            assert secret.to_base64() not in text
            assert secret.to_hex() not in text
            assert repr(secret.raw) not in text


def test_fields_that_are_no_part_of_a_plan_change_nothing() -> None:
    planner, situation = Planner("a0"), Situation(world())
    assert planner.update(situation)
    before = planner.plan()
    for changed in (
        replace(situation, keys=IdentityKeys(KEY)),
        replace(situation, observed=Observations()),
        replace(situation, intent=Intent(probe_intervals=(0.5, 0.0), preshared_key=PresharedKey(b"x" * 32))),
        replace(situation, liveness=replace(situation.liveness), facts=replace(situation.facts)),
    ):
        assert not planner.update(changed)
        assert planner.plan() is before


def test_another_listen_port_changes_the_tunnel_and_the_rules_alone() -> None:
    planner, situation = Planner("a0"), Situation(world())
    planner.update(situation)
    delta = planner.update(replace(situation, intent=Intent(listen_port=51820)))

    assert delta.tunnel.settings is not None
    assert delta.tunnel.settings.listen_port == 51820
    assert (delta.tunnel.peers_set, delta.tunnel.routes, delta.tunnel.accepts) == ((), (), ())
    assert {rule.source_port for rule in delta.host.added.rules} == {51820}
    assert replace(delta.host.added, rules=()) == replace(delta.host.removed, rules=()) == type(delta.host.added)()


def test_a_former_port_keeps_its_rules_as_long_as_the_tunnel_receives_on_it() -> None:
    planner, before = Planner("a0"), Situation(world(), observed=Observations(frozenset({4500})))
    planner.update(before)
    moving = replace(before, intent=Intent(listen_port=51820))
    delta = planner.update(moving).host
    assert {rule.source_port for rule in delta.added.rules} == {51820}
    assert delta.removed.rules == ()
    assert not planner.update(replace(moving, observed=Observations(frozenset({4500, 51820}))))
    delta = planner.update(replace(moving, observed=Observations(frozenset({51820})))).host
    assert {rule.source_port for rule in delta.removed.rules} == {4500}
    assert delta.added.rules == ()


def test_forward_node_ip_is_switched_on_and_off_by_an_update() -> None:
    planner, off = Planner("a0"), Situation(world())
    on = replace(off, intent=Intent(forward_node_ip=True))
    planner.update(off)

    added = planner.update(on).host
    assert planner.plan() == plan(on, "a0")
    assert {route.prefix.prefixlen for route in added.added.routes} == {32}
    assert added.removed.routes == ()

    assert {route.prefix for route in planner.update(off).host.removed.routes} == {
        route.prefix for route in added.added.routes
    }
    assert planner.plan() == plan(off, "a0")
