"""Events without a storm, and stepping back where another controller elects."""

from __future__ import annotations

from ravenvpn.k8s.controller.decode import HeldGateway, StatusWriter, added_fields, read_gateway
from ravenvpn.k8s.controller.events import BURST, EventLog, EventNotice, EventSubject
from ravenvpn.k8s.controller.yurt_manager import Elect, judge

FACTORY = EventSubject("Gateway", "factory", "uid-1", "raven.openyurt.io/v1beta1", "17")
ELECTED = EventNotice(FACTORY, "ActiveEndpointElected", "active tunnel endpoint: edge-1")
T0 = 1_769_860_800.0  # 2026-01-31T12:00:00Z


def test_an_event_as_the_api_takes_it() -> None:
    event = EventLog("vm-1").take(ELECTED, T0)
    assert event is not None
    assert not event.again
    assert event.name.startswith("factory.")
    assert event.body == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": event.name, "namespace": "default"},
        "involvedObject": {
            "apiVersion": "raven.openyurt.io/v1beta1",
            "kind": "Gateway",
            "name": "factory",
            "uid": "uid-1",
            "resourceVersion": "17",
        },
        "reason": "ActiveEndpointElected",
        "message": "active tunnel endpoint: edge-1",
        "type": "Normal",
        "source": {"component": "raven-vpn-controller"},
        "reportingComponent": "raven-vpn-controller",
        "reportingInstance": "vm-1",
        "firstTimestamp": "2026-01-31T12:00:00Z",
        "lastTimestamp": "2026-01-31T12:00:00Z",
        "count": 1,
    }


def test_the_same_words_are_counted_on() -> None:
    log = EventLog("vm-1")
    first, second = log.take(ELECTED, T0), log.take(ELECTED, T0 + 60)
    assert first is not None
    assert second is not None
    assert (second.name, second.again, second.body["count"]) == (first.name, True, 2)
    assert second.body["firstTimestamp"] == "2026-01-31T12:00:00Z"
    assert second.body["lastTimestamp"] == "2026-01-31T12:01:00Z"
    later = log.take(ELECTED, T0 + 3600)
    assert later is not None
    assert (later.again, later.body["count"]) == (False, 1)


def test_about_one_object_a_burst_and_then_one_in_five_minutes() -> None:
    log = EventLog("vm-1")
    storm = [log.take(EventNotice(FACTORY, "ActiveEndpointElected", f"edge-{i}"), T0 + i) for i in range(200)]
    assert sum(event is not None for event in storm) == BURST == 25
    assert log.suppressed == 175
    office = EventSubject("Gateway", "office", "uid-2", "raven.openyurt.io/v1beta1")
    assert log.take(EventNotice(office, "Conflict", "x", True), T0 + 200) is not None  # others are heard
    assert log.take(ELECTED, T0 + 600) is not None


def test_long_words_are_cut_at_what_the_api_takes() -> None:
    event = EventLog("vm-1").take(EventNotice(FACTORY, "Malformed", "ä" * 5000, True), T0)
    assert event is not None
    assert len(event.body["message"].encode()) <= 1024
    assert event.body["type"] == "Warning"


def test_memory_is_bounded() -> None:
    log = EventLog("vm-1")
    for i in range(10_000):
        log.take(EventNotice(EventSubject("Gateway", f"g{i}", "", "v1"), "Conflict", "x"), T0)
    assert len(log._series) <= 4096
    assert len(log._buckets) <= 4096


# Stepping back.


def held(name: str = "factory", **writers: float) -> HeldGateway:
    """Keywords: yurt for yurt-manager, ours for us."""
    names = {"yurt": "yurt-manager", "ours": "raven-vpn-controller", "kubectl": "kubectl-edit"}
    entries = tuple(StatusWriter(names[who], at) for who, at in writers.items())
    return HeldGateway(name, "", "1", 1, None, writers=entries)


def elects(*gateways: HeldGateway, lease: float | None = None, elect: Elect = Elect.AUTO) -> tuple[bool, str]:
    opinion = judge(elect, gateways, "raven-vpn-controller", lease, T0)
    return opinion.elects, opinion.why


def test_with_nobody_else_there_we_elect() -> None:
    assert elects(held(ours=T0 - 5, kubectl=T0))[0]


def test_where_yurt_manager_wrote_last_we_step_back_and_name_the_gateway() -> None:
    assert elects(held("office", ours=T0 - 60, yurt=T0 - 30), held()) == (
        False,
        "yurt-manager wrote the status of Gateway office at 2026-01-31T11:59:30Z",
    )


def test_a_yurt_manager_that_runs_but_found_nothing_to_write_is_seen_by_its_lease() -> None:
    assert not elects(held(yurt=T0 - 90 * 86400), lease=T0 - 10)[0]


def test_one_that_is_long_gone_is_no_reason_to_step_back() -> None:
    assert elects(held(yurt=T0 - 7200))[0]
    assert elects(held(yurt=T0 - 7200), lease=T0 - 7100)[0]


def test_one_that_stopped_after_we_took_over_is_no_reason_either() -> None:
    assert elects(held(yurt=T0 - 60, ours=T0 - 30))[0]


def test_told_is_told() -> None:
    assert elects(held(yurt=T0), lease=T0, elect=Elect.OWN)[0]
    assert not elects(held(ours=T0), elect=Elect.DEFER)[0]


def test_who_wrote_a_status_is_read_from_managed_fields() -> None:
    """API servers before 1.22 did not say which subresource; the fields do."""
    document = {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {
            "name": "factory",
            "managedFields": [
                {
                    "manager": "kubectl",
                    "operation": "Update",
                    "time": "2026-01-31T12:00:00Z",
                    "fieldsV1": {"f:spec": {}},
                },
                {
                    "manager": "yurt-manager",
                    "operation": "Update",
                    "subresource": "status",
                    "time": "2026-01-31T12:00:00Z",
                },
                {"manager": "old", "time": "2026-01-31T11:00:00Z", "fieldsV1": {"f:status": {"f:nodes": {}}}},
            ],
        },
    }
    assert read_gateway(document).writers == (StatusWriter("old", T0 - 3600), StatusWriter("yurt-manager", T0))


def test_what_a_definition_has_beyond_upstreams() -> None:
    def definition(version: str, **properties: object) -> dict[str, object]:
        schema = {"openAPIV3Schema": {"properties": {"status": {"properties": properties}}}}
        return {"spec": {"versions": [{"name": "v1alpha1"}, {"name": version, "schema": schema}]}}

    assert added_fields(definition("v1beta1", nodes={})) == frozenset()
    assert added_fields(definition("v1beta1", nodes={}, conditions={}, nodeCount={})) == {"conditions", "nodeCount"}
    assert added_fields(definition("v1alpha1", conditions={})) == frozenset()
    assert added_fields({"spec": {"versions": None}}) == frozenset()
