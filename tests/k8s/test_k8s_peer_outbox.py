"""Decisions of an agent about its own Peer: when to write it, and which part."""

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
    """Return an outbox whose Peer was written at 0.0, status included, and confirmed by the API."""
    outbox = PeerOutbox()
    outbox.set_content(PLAIN)
    outbox.peer_written(PLAIN, 0.0)
    outbox.observe(dataclasses.replace(PEER, created=1.0))
    outbox.set_status(report())
    outbox.status_written(report(), 0.0)
    return outbox


def test_content_that_does_not_change_is_written_once() -> None:
    outbox = PeerOutbox()
    assert outbox.next_write(0.0) == (PeerPart.NOTHING, NEVER)
    outbox.set_content(PLAIN)
    assert outbox.next_write(0.0) == (PeerPart.PEER, 0.0)
    outbox.peer_written(PLAIN, 0.0)
    outbox.observe(PEER)
    outbox.set_content(PLAIN)
    assert outbox.next_write(1.0) == (PeerPart.NOTHING, NEVER)
    assert outbox.is_published


def test_changed_content_is_written_at_once() -> None:
    outbox = written()
    outbox.set_content(dataclasses.replace(PLAIN, region="harbour"))
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)


def test_a_deleted_peer_is_written_again() -> None:
    outbox = written()
    outbox.observe(None)
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)


def test_a_peer_that_was_changed_in_the_api_is_written_again() -> None:
    outbox = written()
    outbox.observe(dataclasses.replace(PEER, public_key=b"\2" * 32))
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)


def test_an_older_version_of_the_peer_is_ignored() -> None:
    """A write returns before the watch shows its result."""
    outbox = PeerOutbox()
    outbox.set_content(PLAIN)
    outbox.peer_written(PLAIN, 0.0)
    outbox.observe(None)
    outbox.observe(dataclasses.replace(PEER, listen_port=1))
    assert outbox.next_write(1.0) == (PeerPart.PEER, 29.0), "an unconfirmed Peer is written again after 30 s"


def test_a_node_in_no_region_writes_a_peer_only_if_it_was_in_one() -> None:
    outbox = PeerOutbox()
    nowhere = PeerContent(PEER, "", "none")
    outbox.set_content(nowhere)
    assert outbox.next_write(0.0) == (PeerPart.NOTHING, NEVER)
    outbox.set_content(PLAIN)
    outbox.peer_written(PLAIN, 0.0)
    outbox.set_content(nowhere)
    assert outbox.next_write(1.0) == (PeerPart.PEER, 0.0)
    outbox.peer_written(nowhere, 1.0)
    outbox.observe(None)  # no selector of this agent shows a Peer of role none
    assert outbox.next_write(100.0) == (PeerPart.NOTHING, NEVER)


def test_a_status_with_other_numbers_is_written_after_five_minutes() -> None:
    outbox = written()
    outbox.set_status(report(up=2))
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 240.0)
    outbox.set_status(report())
    assert outbox.next_write(60.0) == (PeerPart.NOTHING, NEVER), "the status is as it was written"


def test_a_changed_condition_is_written_at_once_but_at_most_every_ten_seconds() -> None:
    outbox = written()
    outbox.set_status(report(ready=False))
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 0.0)
    outbox.status_written(report(ready=False), 60.0)
    outbox.set_status(report())
    assert outbox.next_write(61.0) == (PeerPart.STATUS, 9.0)


def test_a_status_with_another_message_is_written_after_five_minutes() -> None:
    outbox = written()
    outbox.set_status(report(message="down for 12 s"))
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 240.0)


def test_a_status_without_its_peer_has_the_peer_written_first() -> None:
    outbox = written()
    outbox.set_status(report(ready=False))
    outbox.peer_deleted()
    assert outbox.next_write(60.0) == (PeerPart.PEER, 0.0)
    outbox.peer_written(PLAIN, 60.0)
    assert outbox.next_write(60.0) == (PeerPart.STATUS, 0.0)
