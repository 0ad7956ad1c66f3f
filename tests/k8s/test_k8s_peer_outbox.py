"""When an agent writes its own Peer."""

from __future__ import annotations

import dataclasses

from ravenvpn.k8s.peer_outbox import PeerContent, PeerOutbox, PeerPart, PeerStatusCondition, PeerStatusReport
from ravenvpn.mesh.model import PeerObject

PEER = PeerObject("edge-1", b"\1" * 32, listen_port=4500)
PLAIN = PeerContent(PEER, "factory", "plain")
NEVER = float("inf")


def report(up: int = 1, ready: bool = True, message: str = "") -> PeerStatusReport:
    return PeerStatusReport("1.0", "native", 2, up, (PeerStatusCondition("Ready", ready, "Because", message),))


def written() -> PeerOutbox:
    """Written at 0.0 and shown by the API, status included."""
    outbox = PeerOutbox()
    outbox.set_content(PLAIN)
    outbox.peer_written(PLAIN, 0.0)
    outbox.observe(dataclasses.replace(PEER, created=1.0))
    outbox.set_status(report())
    outbox.status_written(report(), 0.0)
    return outbox


def test_it_is_written_once() -> None:
    outbox = PeerOutbox()
    assert outbox.next_write(0.0) == (PeerPart.NOTHING, NEVER)
    outbox.set_content(PLAIN)
    assert outbox.next_write(0.0) == (PeerPart.PEER, 0.0)
    outbox.peer_written(PLAIN, 0.0)
    outbox.observe(PEER)
    outbox.set_content(PLAIN)
    assert outbox.next_write(1.0) == (PeerPart.NOTHING, NEVER)
    assert outbox.is_published


def test_another_region_is_written_at_once() -> None:
    outbox = written()
    outbox.set_content(dataclasses.replace(PLAIN, region="harbour"))
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)


def test_a_deleted_one_is_written_again() -> None:
    outbox = written()
    outbox.observe(None)
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)


def test_one_that_somebody_else_changed_is_put_right() -> None:
    outbox = written()
    outbox.observe(dataclasses.replace(PEER, public_key=b"\2" * 32))
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)


def test_a_world_older_than_what_was_written_is_not_believed() -> None:
    """The write returns before the watch shows it."""
    outbox = PeerOutbox()
    outbox.set_content(PLAIN)
    outbox.peer_written(PLAIN, 0.0)
    outbox.observe(None)
    outbox.observe(dataclasses.replace(PEER, listen_port=1))
    assert outbox.next_write(1.0) == (PeerPart.PEER, 29.0), "but it is looked at again after half a minute"


def test_a_node_in_no_region_announces_nothing_until_it_was_in_one() -> None:
    outbox = PeerOutbox()
    nowhere = PeerContent(PEER, "", "none")
    outbox.set_content(nowhere)
    assert outbox.next_write(0.0) == (PeerPart.NOTHING, NEVER)
    outbox.set_content(PLAIN)
    outbox.peer_written(PLAIN, 0.0)
    outbox.set_content(nowhere)
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)
    outbox.peer_written(nowhere, 1.0)
    outbox.observe(None)  # no selector of ours shows it now
    assert outbox.next_write(100.0) == (PeerPart.NOTHING, NEVER)


def test_numbers_in_the_status_may_wait_five_minutes() -> None:
    outbox = written()
    outbox.set_status(report(up=2))
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 240.0)
    outbox.set_status(report())
    assert outbox.next_write(60.0) == (PeerPart.NOTHING, NEVER), "as it was again meanwhile"


def test_readiness_is_told_at_once_and_not_more_often_than_every_ten_seconds() -> None:
    outbox = written()
    outbox.set_status(report(ready=False))
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 0.0)
    outbox.status_written(report(ready=False), 60.0)
    outbox.set_status(report())
    assert outbox.next_write(61.0) == (PeerPart.STATUS, 9.0)


def test_a_reason_that_only_reads_otherwise_is_no_hurry() -> None:
    outbox = written()
    outbox.set_status(report(message="down for 12 s"))
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 240.0)


def test_a_status_whose_peer_is_gone_has_it_written_again_and_follows() -> None:
    outbox = written()
    outbox.set_status(report(ready=False))
    outbox.peer_deleted()
    assert outbox.next_write(60.0) == (PeerPart.PEER, 0.0)
    outbox.peer_written(PLAIN, 60.0)
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 0.0)
