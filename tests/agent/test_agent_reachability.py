"""States of peers, paths to regions, rates, and the health of a node."""

from __future__ import annotations

import pytest
from agent_ends import end, plan
from agent_reports import status, vitals

from ravenvpn.agent.lag import LoopLag
from ravenvpn.agent.peer_rows import TransferRates, peer_state
from ravenvpn.agent.reachability import reach_directly, reach_through_gateway
from ravenvpn.agent.reports import PeerCondition, ProblemReport, RegionReport
from ravenvpn.cli.status import _screen
from ravenvpn.health import judged, unhealthy_reasons, unready_reasons
from ravenvpn.mesh.liveness import Liveness, LivenessVerdict
from ravenvpn.mesh.model import EndpointType, Gateway, GatewayEndpoint, GatewayStatus, World
from ravenvpn.mesh.reason import Reason, ReasonCode, explain

EDGE = end("edge", "hub")


def world(*regions: str) -> World:
    made = World()
    for name in regions:
        active = (GatewayEndpoint(node=name, type=EndpointType.TUNNEL),)
        made = made.with_gateway(Gateway(name=name, status=GatewayStatus(active=active)))
    return made


@pytest.mark.parametrize(
    ("session", "verdict", "warm", "expected"),
    [
        (True, LivenessVerdict.ALIVE, True, (PeerCondition.UP, "")),
        (True, LivenessVerdict.DEAD, True, (PeerCondition.DOWN, "it answers no probe")),
        (False, LivenessVerdict.UNKNOWN, True, (PeerCondition.DOWN, "no handshake yet")),
        (False, LivenessVerdict.UNKNOWN, False, (PeerCondition.COLD, "")),
    ],
)
def test_the_state_of_a_session(
    session: bool, verdict: LivenessVerdict, warm: bool, expected: tuple[PeerCondition, str]
) -> None:
    state, why = peer_state(plan("hub", warm=warm), EDGE.status("hub", session=session), verdict)
    assert (state, explain(why)) == expected


def test_a_region_behind_a_hub_is_as_reachable_as_the_hub() -> None:
    dead = Liveness({"hub": LivenessVerdict.DEAD})
    for liveness, ok in ((Liveness(), True), (dead, False)):
        reached = reach_directly(
            {"hub": plan("hub")},
            {"hub": EDGE.status("hub")},
            world("edge", "hub", "island"),
            own_region="edge",
            relays={"island": "hub"},
            liveness=liveness,
        )
        assert {name: (reach.path, reach.ok) for name, reach in reached.items()} == {
            "hub": ("direct", ok),
            "island": ("via hub", ok),
        }


def test_a_plain_node_reaches_the_other_regions_while_its_gateway_is_up() -> None:
    def reached(
        gateway: str, verdict: LivenessVerdict = LivenessVerdict.ALIVE, *, session: bool = True, has_peer: bool = True
    ) -> dict[str, tuple[str, bool, str]]:
        found = reach_through_gateway(
            gateway,
            plan("hub"),
            EDGE.status("hub") if session else None,
            world("home", "ship").with_gateway(Gateway(name="empty")),
            own_region="home",
            verdict=verdict,
            has_peer=has_peer,
        )
        return {name: (reach.path, reach.ok, explain(reach.why)) for name, reach in found.items()}

    assert reached("hub") == {
        "empty": ("via hub", False, "it has no active gateway"),
        "ship": ("via hub", True, ""),
    }
    dead = "our gateway hub is down, it answers no probe"
    assert reached("hub", LivenessVerdict.DEAD)["ship"] == ("via hub", False, dead)
    silent = "there is no session with our gateway hub, so nothing is known of it"
    assert reached("hub", session=False)["ship"] == ("via hub", False, silent)
    upstreams = "not known: our gateway hub has no Peer, as where upstream's agent runs"
    assert reached("hub", session=False, has_peer=False)["ship"] == ("via hub", True, upstreams)
    alone = "region home has no active gateway that this node can send to"
    assert reached("")["ship"] == ("none", False, alone)


def test_status_shows_that_the_reach_through_upstreams_gateway_is_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    unknown = "not known: our gateway old-1 has no Peer, as where upstream's agent runs"
    ship = RegionReport(name="ship", gateway="ship-1", path="via old-1", ok=True, why=unknown)
    _screen(judged(status(role="plain node", sessions_wanted=0, sessions_up=0, regions=(ship,)), vitals()))
    screen = capsys.readouterr().out
    assert screen.startswith("healthy")
    assert "sessions:    none wanted" in screen
    assert f"via old-1  {unknown}" in screen


def test_a_region_without_path_has_a_reason() -> None:
    nobody = World().with_gateway(Gateway(name="empty"))
    reached = reach_directly({}, {}, nobody, own_region="edge", relays={}, liveness=Liveness())
    assert reached["empty"].path == "none"
    assert reached["empty"].why == Reason(ReasonCode.REGION_WITHOUT_GATEWAY, "empty")
    hidden = reach_directly({}, {}, world("island"), own_region="edge", relays={}, liveness=Liveness())
    assert hidden["island"].why == Reason(ReasonCode.REGION_WITHOUT_PATH, "island")


def test_rates_are_means_over_the_window() -> None:
    rates = TransferRates()
    rates.update([EDGE.status("hub", octets=0)], 10.0)
    rates.update([EDGE.status("hub", octets=9_000)], 11.0)
    assert rates.of("hub") == (0.0, 0.0), "a second is too short to say anything"
    rates.update([EDGE.status("hub", octets=10_000)], 12.0)
    assert rates.of("hub") == (5_000.0, 0.0)
    rates.update([], 13.0)
    assert rates.of("hub") == (0.0, 0.0)


def test_a_blocked_loop_counts_for_five_seconds() -> None:
    lag = LoopLag()
    lag.record(1.0, 1.01)
    lag.record(1.5, 4.5)
    lag.record(5.0, 5.0)
    assert lag.worst == 3.0
    lag.record(9.4, 9.5)
    assert lag.worst == 3.0
    lag.record(9.9, 9.9)
    assert lag.worst == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        ({"world_at": None}, "no world has been read yet from file:/w"),
        ({"applied_at": None}, "the first plan is not applied to this host yet"),
        ({"source_error": "gone"}, "the source cannot be read: gone"),
        ({"device_up": False}, "the tunnel device is missing or down"),
        ({"host_missing": 2}, "2 of our routes, rules or devices are missing on this host"),
        ({"loop_lag": 1.5}, "the event loop was blocked for 1.5 s"),
        (
            {"unreachable": (("cloud", "x is down"), ("ship", ""))},
            "no other region can be reached (cloud: x is down; ship: no path)",
        ),
    ],
)
def test_each_fault_that_makes_a_node_unready(cause: dict[str, object], reason: str) -> None:
    assert unready_reasons(vitals()) == []
    assert unready_reasons(vitals(**cause)) == [reason]


def test_one_unreachable_region_of_two_is_not_healthy_but_ready() -> None:
    partly = vitals(unreachable=(("ship", "ship-1 is down"),))
    assert unready_reasons(partly) == []
    assert unhealthy_reasons(partly, ()) == ["1 of 2 regions cannot be reached (ship: ship-1 is down)"]


def test_a_node_alone_in_its_mesh_is_ready() -> None:
    assert unready_reasons(vitals(regions=0)) == []


def test_many_unreachable_regions_are_one_line() -> None:
    dead = tuple((f"r{number}", "down") for number in range(9))
    assert unready_reasons(vitals(regions=9, unreachable=dead)) == [
        "no other region can be reached (r0: down; r1: down; r2: down; 6 more)"
    ]


def test_the_most_important_reason_comes_first_and_problems_are_counted() -> None:
    problem = ProblemReport(kind="manifest", where="a.yaml:3", message="no name")
    report = judged(status(problems=(problem, problem)), vitals(device_up=False))
    assert not report.healthy
    assert report.reasons == (
        "the tunnel device is missing or down",
        "manifest a.yaml:3: no name, and 1 more",
    )
    assert judged(status(), vitals()).healthy
