"""Content and status of a node's own Peer object, and reports about an unreachable API server, without I/O."""

from __future__ import annotations

import ipaddress
import time

import pytest
from agent_reports import status

from ravenvpn import config, metrics
from ravenvpn.agent.own_peer import key_conflicts, peer_content, peer_status
from ravenvpn.agent.reports import ApiReport, Vitals
from ravenvpn.cli.status import _screen
from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PrivateKey
from ravenvpn.errors import ConfigError
from ravenvpn.health import unhealthy_reasons, unready_reasons
from ravenvpn.k8s import crd
from ravenvpn.k8s.peer_outbox import PeerContent
from ravenvpn.mesh.conflict import Conflict, ConflictKind
from ravenvpn.mesh.local_facts import LocalFacts
from ravenvpn.mesh.model import Gateway, GatewayStatus, HostPort, NodeInfo, PeerObject, World
from ravenvpn.mesh.nodeplan import NodeRole
from ravenvpn.mesh.situation import IdentityKeys, Intent, Situation
from ravenvpn.node.discovery import LocalAddress

KEY = PrivateKey(b"\7" * 32)
IP = ipaddress.ip_address


def world(*peers: PeerObject, private_ip: str = "10.0.0.5") -> World:
    info = NodeInfo("f1", IP(private_ip), (ipaddress.ip_network("10.244.3.0/24"),))
    return World.of([Gateway("factory", status=GatewayStatus(nodes=(info,)))], peers)


def present(*texts: str) -> tuple[LocalAddress, ...]:
    """Parse addresses such as "eth0 10.0.0.5/24"."""
    pairs = (text.split() for text in texts)
    return tuple(LocalAddress(device, ipaddress.ip_interface(address)) for device, address in pairs)


def announce(
    of: World, role: NodeRole, here: tuple[LocalAddress, ...], addresses: tuple[HostPort, ...] = ()
) -> PeerContent:
    suites = frozenset({Suite.CHACHA20POLY1305, Suite.AES256GCM})
    facts = LocalFacts(addresses=frozenset(item.address.ip for item in here))
    situation = Situation(of, facts=facts, intent=Intent(addresses=addresses, suites=suites), keys=IdentityKeys(KEY))
    return peer_content("f1", situation, role, "factory" if role is not NodeRole.NONE else "", here)


HERE = present(
    "cni0 10.244.3.1/24",
    "docker0 172.17.0.1/16",
    "eth0 10.0.0.5/24",
    "eth0 10.0.0.99/24",  # for a while the address of another host
    "eth0 fd00:10::5/64",
    "eth1 192.168.7.5/24",
)


def test_lan_addresses_are_those_of_the_device_with_the_internal_ip() -> None:
    peer = announce(world(), NodeRole.PLAIN, HERE).peer
    assert peer.node_addresses == (IP("10.0.0.5"), IP("fd00:10::5"))


def test_the_source_is_an_address_of_the_pod_network_else_the_internal_ip() -> None:
    assert announce(world(), NodeRole.PLAIN, HERE).peer.sources == (IP("10.244.3.1"), IP("fd00:10::5"))
    without_cni = HERE[1:]
    assert announce(world(), NodeRole.PLAIN, without_cni).peer.sources == (IP("10.0.0.5"), IP("fd00:10::5"))


def test_the_present_peer_object_does_not_influence_the_next() -> None:
    """In the old object the port is from a former Gateway, and the source from before the CNI was up."""
    before = PeerObject("f1", KEY.public.raw, listen_port=5000, sources=(IP("10.0.0.5"),))
    peer = announce(world(before), NodeRole.PLAIN, HERE).peer
    assert peer.listen_port == 4500
    assert peer.sources[0] == IP("10.244.3.1")


def test_active_and_standby_gateways_announce_the_same() -> None:
    active, standby = (announce(world(), role, HERE) for role in (NodeRole.ACTIVE, NodeRole.STANDBY))
    assert active == standby
    assert active.role == "gateway"
    assert announce(world(), NodeRole.PLAIN, HERE).role == "plain"
    assert announce(world(), NodeRole.NONE, HERE).role == "none"


def test_only_configured_addresses_are_announced() -> None:
    public = (*HERE, *present("eth2 198.51.100.7/24"))
    assert announce(world(), NodeRole.ACTIVE, public).peer.addresses == ()
    said = config.build({"addresses": "vpn.example.org, [2001:db8::7]:4600"}).announced_addresses
    assert said == (HostPort("vpn.example.org"), HostPort("2001:db8::7", 4600))
    assert announce(world(), NodeRole.ACTIVE, public, addresses=said).peer.addresses == said


def test_the_written_object_is_read_back_unchanged() -> None:
    """A difference would make the agent write the object on every reconcile."""
    wanted = announce(world(), NodeRole.ACTIVE, HERE, addresses=(HostPort("2001:db8::7", 4600),))
    assert crd.parse(wanted.document()).value == wanted.peer


@pytest.mark.parametrize(("key", "text"), [("source", "cluster:"), ("source", "file:"), ("addresses", "1.2.3.999")])
def test_a_setting_that_does_not_parse_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=key):
        config.build({key: text})


# Outages of the API server.


def vitals(api: ApiReport | None, world_at: float | None = 1.0) -> Vitals:
    return Vitals(
        role="plain",
        source="cluster https://192.0.2.10:6443",
        world_at=world_at,
        applied_at=2.0,
        source_error="" if world_at else (api.error if api else ""),
        device_up=True,
        host_missing=0,
        loop_lag=0.0,
        regions=1,
        unreachable=(),
        sessions_wanted=2,
        sessions_up=1,
        api=api,
    )


def api(
    away: float | None, *, saved_at: float | None = None, announce_error: str = "", cluster: str = "here"
) -> ApiReport:
    return ApiReport(
        server="https://192.0.2.10:6443",
        connected_since=None if away else 1.0,
        away=away,
        heard_at=None,
        error="connection refused" if away else "",
        saved_at=saved_at,
        cluster=cluster,
        world_of="here",
        announced=True,
        announce_error=announce_error,
        lists=0,
        watches=0,
        events=0,
        writes=0,
    )


def test_a_lost_api_server_makes_a_node_unhealthy_but_not_unready() -> None:
    assert unready_reasons(vitals(api(3600.0))) == []
    assert unhealthy_reasons(vitals(api(3600.0)), ()) == [
        "the API server has been away for 3600 s (connection refused); traffic goes on by the last world it sent"
    ]
    assert "by the saved world" in unhealthy_reasons(vitals(api(60.0, saved_at=1.0)), ())[0]


def test_a_short_loss_of_the_api_server_is_not_reported() -> None:
    assert unhealthy_reasons(vitals(api(5.0)), ()) == []
    assert unhealthy_reasons(vitals(api(None)), ()) == []


def test_a_node_without_a_world_is_unready_with_the_cause() -> None:
    reasons = unready_reasons(vitals(api(5.0), world_at=None))
    assert "no world has been read yet" in reasons[0]
    assert "connection refused" in reasons[1]


def test_another_cluster_behind_the_address_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert unready_reasons(vitals(api(None, cluster="there"))) == []
    (reason,) = unhealthy_reasons(vitals(api(None, cluster="there")), ())
    assert reason.startswith(
        "the API server belongs to another cluster than before (there, not here); traffic goes on"
    )
    assert unhealthy_reasons(vitals(api(None, cluster="")), ()) == [], "not asked yet"
    _screen(status(api=api(None, cluster="there")))
    assert "OF ANOTHER CLUSTER" in capsys.readouterr().out


def test_a_peer_object_that_cannot_be_written_is_reported() -> None:
    assert unhealthy_reasons(vitals(api(None, announce_error="forbidden")), ()) == [
        "our Peer object cannot be written: forbidden; others keep what it had before"
    ]


def test_a_duplicate_key_is_a_condition_of_both_peers() -> None:
    shared = Conflict(ConflictKind.DUPLICATE_KEY, "k", "Peer b", "spec.publicKey", "Peer a", "run keygen")
    assert key_conflicts("a", [shared]) == key_conflicts("b", [shared]) == [shared]
    assert key_conflicts("c", [shared]) == []
    conditions = {c.type: c.holds for c in peer_status("1", "native", vitals(None), [], [shared]).conditions}
    assert conditions == {"Ready": True, "KeyIsOurs": False}
    conditions = {c.type: c.holds for c in peer_status("1", "native", vitals(None), ["no device"], []).conditions}
    assert conditions == {"Ready": False, "KeyIsOurs": True}


def test_metrics_of_the_api_server_exist_only_in_a_cluster() -> None:
    text = metrics.exposition(lambda: (status(api=api(60.0, saved_at=1.0)), [])).decode()
    assert "ravenvpn_api_connected 0.0" in text
    assert "ravenvpn_api_saved_world 1.0" in text
    assert "ravenvpn_api_writes_total 0.0" in text
    assert "ravenvpn_api" not in metrics.exposition(lambda: (status(), [])).decode()


def test_status_shows_a_saved_world_and_a_lost_server(capsys: pytest.CaptureFixture[str]) -> None:
    _screen(status(api=api(3600.0, saved_at=time.time() - 60)))
    screen = capsys.readouterr().out
    assert "SAVED ONE" in screen
    assert "AWAY for 1h" in screen
    assert "connection refused" in screen
    _screen(status(api=api(None)))
    assert "connected for" in capsys.readouterr().out
