"""Notices become Events: repeated Events are counted, and the number of Events per object is limited."""

from __future__ import annotations

from ravenvpn.k8s.controller.events import BURST, EventCorrelator, EventNotice, EventSubject

FACTORY = EventSubject("Gateway", "factory", "uid-1", "raven.openyurt.io/v1beta1", "17")
ELECTED = EventNotice(FACTORY, "ActiveEndpointElected", "active tunnel endpoint: edge-1")
T0 = 1_769_860_800.0  # 2026-01-31T12:00:00Z


def test_the_body_is_a_core_v1_event() -> None:
    event = EventCorrelator("vm-1").correlate(ELECTED, T0)
    assert event is not None
    assert not event.repeated
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


def test_a_repeated_notice_raises_the_count() -> None:
    correlator = EventCorrelator("vm-1")
    first, second = correlator.correlate(ELECTED, T0), correlator.correlate(ELECTED, T0 + 60)
    assert first is not None
    assert second is not None
    assert (second.name, second.repeated, second.body["count"]) == (first.name, True, 2)
    assert second.body["firstTimestamp"] == "2026-01-31T12:00:00Z"
    assert second.body["lastTimestamp"] == "2026-01-31T12:01:00Z"
    later = correlator.correlate(ELECTED, T0 + 3600)
    assert later is not None
    assert (later.repeated, later.body["count"]) == (False, 1)


def test_one_object_gets_a_burst_of_events_and_then_one_in_five_minutes() -> None:
    correlator = EventCorrelator("vm-1")
    storm = [
        correlator.correlate(EventNotice(FACTORY, "ActiveEndpointElected", f"edge-{i}"), T0 + i) for i in range(200)
    ]
    assert sum(event is not None for event in storm) == BURST == 25
    assert correlator.suppressed == 175
    office = EventSubject("Gateway", "office", "uid-2", "raven.openyurt.io/v1beta1")
    assert correlator.correlate(EventNotice(office, "Conflict", "x", True), T0 + 200) is not None
    assert correlator.correlate(ELECTED, T0 + 600) is not None


def test_a_long_message_is_cut_at_1024_bytes() -> None:
    event = EventCorrelator("vm-1").correlate(EventNotice(FACTORY, "Malformed", "ä" * 5000, True), T0)
    assert event is not None
    assert len(event.body["message"].encode()) <= 1024
    assert event.body["type"] == "Warning"


def test_memory_is_bounded() -> None:
    correlator = EventCorrelator("vm-1")
    for i in range(10_000):
        correlator.correlate(EventNotice(EventSubject("Gateway", f"g{i}", "", "v1"), "Conflict", "x"), T0)
    assert len(correlator._series) <= 4096
    assert len(correlator._buckets) <= 4096
